"""Fresh buffers hold NaN here; tests/conftest.py turns Triton's interpreter on."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_buffers():
    """What a kernel does not write is NaN: torch.empty fills so for repeatable results."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
