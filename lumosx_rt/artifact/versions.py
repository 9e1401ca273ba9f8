"""The versions that a result depends on, as manifests state them."""

import platform

import torch

from lumosx_rt import __version__


def versions(**others: str) -> dict[str, str]:
    """lumosx-rt, torch and Python, and what else is named."""
    return {
        "lumosx_rt": __version__,
        "torch": torch.__version__.split("+")[0],
        **others,
        "python": platform.python_version(),
    }
