"""How tests trace their models, which have two layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch._dynamo
from torch.fx.experimental import _config as symbolic


@contextmanager
def in_less_time() -> Iterator[None]:
    """Trace in a third of the time, to a program of the same numbers.

    Without the cache of torch's fake tensors; and taking sizes of 0 and 1 as any others, which the
    shape arithmetic of a graph shows in a few nodes. tests/export/onnx/test_graph.py traces as
    users do.
    """
    with (
        torch._dynamo.config.patch(fake_tensor_cache_enabled=False),
        symbolic.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]  # a config module
    ):
        yield
