"""Where the time of one call goes, as shares by kind of work."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = ("linear", "attention", "rounding", "moves", "rest")
"""linear: products with weights. attention: products of activations, softmax. rounding: to e4m3
and back. moves: copies, casts, concatenations, gathers. rest: norms, other elementwise work, the
kernels that inductor generates, and what no operator accounts for."""

_TORCH = {
    "linear": ("addmm", "mm", "linear", "mkldnn_linear", "_linear_pointwise", "convolution"),
    "attention": ("scaled_dot_product", "bmm", "baddbmm", "softmax", "flash_attention"),
    "moves": (
        *("copy_", "cat", "clone", "contiguous", "_to_copy", "to", "index", "index_select"),
        *("fill_", "zero_", "constant_pad_nd", "empty", "new_zeros", "select_scatter"),
    ),
}
_ONNX = {
    "linear": ("Gemm", "FusedGemm"),
    "attention": ("Attention", "MultiHeadAttention", "Softmax", "Einsum"),
    "rounding": ("QuantizeLinear", "DequantizeLinear"),
    "moves": (
        *("Transpose", "Concat", "Gather", "GatherElements", "Cast", "Expand", "Reshape", "Split"),
        *("Slice", "Unsqueeze", "Squeeze", "Tile", "Pad", "Where"),
    ),
}
_PRODUCTS = ("MatMul", "FusedMatMul", "TransposeMatMul", "MatMulAdd")


def of_torch(run: Callable[[], object]) -> dict[str, float]:
    """Shares of a warm call's time; generated kernels tell a profiler nothing, and are the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        run()
        wall_us = 1e6 * (time.perf_counter() - start)
    kinds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn::", "mkl::", "quantized::")):
            kinds[kind_of_torch(event.key)] += event.self_cpu_time_total
    return shares(kinds, max(wall_us, sum(kinds.values())))


def kind_of_torch(name: str) -> str:
    bare = name.partition("::")[2]
    if any(bare.startswith(f"_{start}") or bare.startswith(start) for start in _ATTENTION):
        return "attention"
    return next((kind for kind, names in _TORCH.items() if bare in names), "rest")


_ATTENTION = ("scaled_dot_product", "flash_attention", "softmax")


def of_onnx(make: Callable[[], tuple[Any, Callable[[], object]]]) -> dict[str, float]:
    """Shares of one call's time. make: opens a session and binds it: (session, call)."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:

        class Profiling(onnxruntime.SessionOptions):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = f"{folder}/profile"

        with mock.patch.object(onnxruntime, "SessionOptions", Profiling):
            session, run = make()
        run()
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return of_events(events)


def of_events(events: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Shares in onnxruntime's profile of calls, of which the last counts."""
    calls = [e for e in events if e.get("name") == "model_run"]
    last = max(calls, key=lambda event: event["ts"])
    nodes = [e for e in events if e.get("cat") == "Node" and e["ts"] >= last["ts"]]
    kinds: dict[str, float] = defaultdict(float)
    for event in nodes:
        if event["name"].endswith("_kernel_time"):
            kinds[kind_of_node(event["args"])] += event["dur"]
    return shares(kinds, max(last["dur"], sum(kinds.values())))


def kind_of_node(facts: dict[str, Any]) -> str:
    """A product with a matrix of two axes, or one that was packed, is one with weights, else
    attention's."""
    name = facts["op_name"]
    if name in _PRODUCTS:
        shapes = [shape for given in facts["input_type_shape"] for shape in given.values()]
        return "linear" if len(shapes) < 2 or len(shapes[1]) <= 2 else "attention"
    return next((kind for kind, names in _ONNX.items() if name in names), "rest")


def shares(kinds: dict[str, float], whole: float) -> dict[str, float]:
    """Of the whole, by kind; what no kind accounts for is in the rest."""
    known = {kind: kinds.get(kind, 0.0) / whole for kind in KINDS if kind != "rest"}
    return {kind: round(share, 3) for kind, share in known.items()} | {
        "rest": round(1 - sum(known.values()), 3)
    }


def profile_of(
    variant: Any, size: Any, model: Any, made: Path, run: Callable[[], object]
) -> dict[str, float]:
    """Shares of a variant's call; onnxruntime needs another session for it. Raises ValueError for a
    package, which calls nothing that a profiler sees."""
    if variant.suffix == ".pt2":
        raise ValueError("a package tells a profiler nothing")
    if variant.suffix != ".onnx" or variant.make is None:
        return of_torch(run)

    def make() -> tuple[Any, Callable[[], object]]:
        from benchmarks.speed.variants import bound
        from lumosx_rt.backends.onnxruntime.run import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(made, "cpu", threads=torch.get_num_threads())
        return backend.session, bound(backend, size)

    return of_onnx(make)
