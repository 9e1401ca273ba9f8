"""How far apart two results are, as numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def relative_error(actual: Tensor | Sequence[float], expected: Tensor) -> float:
    """Return |actual - expected| / |expected|, in the 2-norm and float64."""
    difference = torch.as_tensor(actual).double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(1e-30))


def peak_signal_to_noise(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """PSNR in dB of 8-bit frames; None where they are identical."""
    error = np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return None if error == 0 else float(10 * np.log10(255**2 / error))
