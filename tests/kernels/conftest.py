"""Kernels run in Triton's interpreter here, and fresh buffers hold NaN."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def poisoned_buffers():
    """What a kernel does not write is NaN: torch.empty fills so for repeatable results."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
