"""The versions that a result depends on, as manifests state them."""

import platform

import torch

from lumosx_rt.reference.version import VERSION


def versions(**others: str) -> dict[str, str]:
    """Return the versions of lumosx-rt, torch and Python, and what else is named."""
    return {
        "lumosx_rt": VERSION,
        "torch": torch.__version__.split("+")[0],
        **others,
        "python": platform.python_version(),
    }
