"""A Triton launcher as a torch operator: callable, exportable, differentiable.

On a GPU it is a `triton_op`, which torch.compile and AOTInductor look into; handed CPU tensors it
is its plain torch formulation. Under Triton's interpreter, where that cannot be traced, it is an
opaque custom operator that runs the kernel on the CPU. Gradients are those of the plain
formulation, recomputed.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lumosx_rt.kernels.numerics import INTERPRETED

Outputs = Tensor | tuple[Tensor, ...]


def launcher(
    kernel: Any, grid: Callable[[dict[str, Any]], tuple[int, ...]] | tuple[int, ...]
) -> Any:
    """kernel[grid], traceable where operators are."""
    return (kernel if INTERPRETED else torch.library.wrap_triton(kernel))[grid]


def operator(
    name: str,
    launch: Callable[..., Outputs],
    plain: Callable[..., Outputs],
    empty: Callable[..., Outputs],
) -> Callable[..., Any]:
    """Register `lumosx::name`; returns the callable.

    launch: runs the kernel; its annotations are the operator's schema, and no output may be an
    input. plain: the same in torch. empty: the outputs, not filled: all that tracing needs.
    """
    full = f"lumosx::{name}"

    def run(*arguments: Any) -> Outputs:
        """Called with positions only, though it is given the launcher's signature."""
        first = next(a for a in arguments if isinstance(a, Tensor))
        on_cpu = first.device.type == "cpu" and not INTERPRETED
        return (plain if on_cpu else launch)(*arguments)

    run.__signature__ = inspect.signature(launch)  # type: ignore[attr-defined]
    define: Any = torch.library.custom_op if INTERPRETED else torch.library.triton_op
    op = define(full, run, mutates_args=())
    if INTERPRETED:
        op.register_fake(empty)

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.tensors = [i for i, a in enumerate(inputs) if isinstance(a, Tensor)]
        ctx.others = [None if isinstance(a, Tensor) else a for a in inputs]
        ctx.save_for_backward(*(inputs[i] for i in ctx.tensors))

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        arguments = list(ctx.others)
        with torch.enable_grad():
            for i, saved in zip(ctx.tensors, ctx.saved_tensors, strict=True):
                wanted = ctx.needs_input_grad[i]
                arguments[i] = saved.detach().requires_grad_(wanted)
            outputs = plain(*arguments)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        wanted_inputs = [i for i in ctx.tensors if ctx.needs_input_grad[i]]
        used = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in used],
            [arguments[i] for i in wanted_inputs],
            [g for _, g in used],
            allow_unused=True,
        )
        result: list[Tensor | None] = [None] * len(arguments)
        for i, gradient in zip(wanted_inputs, found, strict=True):
            result[i] = gradient
        return tuple(result)

    op.register_autograd(backward, setup_context=remember)
    return op


def check(name: str, tensor: Tensor, shape: str, sizes: Sequence[int | None]) -> None:
    """Raise ValueError unless `tensor` has these sizes (None: any); `shape` names the axes."""
    if tensor.dim() != len(sizes) or any(
        wanted is not None and size != wanted
        for size, wanted in zip(tensor.shape, sizes, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(
            f"`{name}` must have shape {shape} = [{expected}], got {list(tensor.shape)}"
        )


def check_broadcast(name: str, size: int, full: int) -> None:
    """Raise ValueError unless an axis is 1 or full; symbolic sizes are left to the expansion."""
    if isinstance(size, int) and isinstance(full, int) and size not in (1, full):
        raise ValueError(f"`{name}` must have 1 or {full} entries a batch, got {size}")
