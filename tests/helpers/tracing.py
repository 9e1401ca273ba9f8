"""How tests trace and compile their models, which have two layers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch._dynamo
from torch._inductor import config as inductor
from torch.fx.experimental import _config as symbolic


@contextmanager
def in_less_time() -> Iterator[None]:
    """Trace in a third of the time, to a program of the same numbers.

    Without the cache of torch's fake tensors; taking sizes of 0 and 1 as any others, which the
    shape arithmetic of a graph shows in a few nodes; with loops that use no vector instructions;
    and without looking for garbage among the nodes. tests/export/onnx/test_graph.py traces as
    users do, and a slow test of tests/lumosx_rt/backends/torch/test_run.py compiles as they do.
    """
    with (
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
        symbolic.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]  # a config module
        inductor.patch({"cpp.simdlen": 1, "aot_inductor.compile_wrapper_opt_level": "O0"}),
    ):
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
