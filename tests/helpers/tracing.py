"""How tests trace their models, which have two layers."""

from contextlib import AbstractContextManager

import torch._dynamo


def few_layers() -> AbstractContextManager[None]:
    """Leave the cache of torch's fake tensors out, which takes longer than it saves here."""
    return torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
