"""Replace linears of a model and wrap its operations, for the time of a block.

    with attached(model, {"blocks.3.ffn.0": another}, wrapped(model.ops, self_attention=around)):
        ...

Sites are named as in `sites.py`. Whatever was attached is taken away in one place, in the opposite
order: also after an exception, and also where attaching itself fails half-way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from torch import nn

from lumosx_rt.calibration.sites import is_attention
from lumosx_rt.reference.backbones.ops import (
    Attended,
    CrossAttention,
    CrossAttentionOp,
    Ops,
    SelfAttention,
    SelfAttentionOp,
)
from lumosx_rt.reference.backbones.wan import LumosX

AroundSelf = Callable[[SelfAttentionOp, SelfAttention], Attended]
AroundCross = Callable[[CrossAttentionOp, CrossAttention], Attended]


@contextmanager
def attached(
    model: LumosX,
    modules: Mapping[str, nn.Module],
    ops: Ops | None = None,
    before: Callable[[], None] | None = None,
) -> Iterator[LumosX]:
    """Give a model other modules and operations while the block runs.

    modules: by site. At a linear, or at the activation beside one, the module takes its place. An
    attention is no module of the model, so there it is added.
    ops: what the model runs on; None leaves its own.
    before: called before every forward pass.
    Raises ValueError where the model has no such site.
    """
    with ExitStack() as stack:
        for site, module in modules.items():
            stack.callback(_put(model, site, module))
        if ops is not None:
            stack.callback(setattr, model, "ops", model.ops)
            model.ops = ops
        if before is not None:
            stack.callback(model.register_forward_pre_hook(lambda *_: before()).remove)
        yield model


def wrapped(
    ops: Ops,
    self_attention: AroundSelf | None = None,
    cross_attention: AroundCross | None = None,
) -> Ops:
    """Put functions around attentions; each is given the operation it stands for, and the call."""
    if self_attention is not None:
        ops = replace(ops, self_attention=partial(self_attention, ops.self_attention))
    if cross_attention is not None:
        ops = replace(ops, cross_attention=partial(cross_attention, ops.cross_attention))
    return ops


def linear_at(model: LumosX, site: str) -> nn.Linear:
    """Return the linear of a site."""
    linear = model.get_submodule(site)
    assert isinstance(linear, nn.Linear), f"{site} is a {type(linear).__name__}"
    return linear


def _put(model: LumosX, site: str, module: nn.Module) -> Callable[[], None]:
    """Put a module at a site; returns what undoes it."""
    place, _, name = site.rpartition(".")
    try:
        holder = model.get_submodule(place)
    except AttributeError:
        raise ValueError(f"the model has no `{place}` to attach `{name}` to") from None
    own = holder._modules.get(name)
    if own is None and not is_attention(site):
        raise ValueError(f"the model has no `{site}` to replace")
    setattr(holder, name, module)
    return partial(delattr, holder, name) if own is None else partial(setattr, holder, name, own)
