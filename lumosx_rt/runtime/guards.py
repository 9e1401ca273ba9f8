"""What stops a request whose output would be no video, and the counts of what became of requests.

Numbers that are not finite and pictures of one colour are errors, wherever they arise: in what the
encoders make of a scene, in the latents after a step, in the frames.
"""

from dataclasses import dataclass, field, fields
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.reference.errors import Flat, NotFinite
from lumosx_rt.reference.mechanisms.mechanism import Binding

FLAT = 0.5  # standard deviation in 8-bit levels below which a video shows nothing
FLAT_LATENTS = 1e-4  # the same of latents, where ordinary pictures have about 1


@dataclass
class Health:
    """What an engine has done since it was loaded; counts only, safe to read at any time."""

    requests: int = 0
    """Scenes that were asked for."""
    refused: int = 0
    """Of them, those that did not fit: words, pictures, sizes, settings, memory."""
    steps: int = 0
    """Solver steps that ended well, over all requests."""
    videos: int = 0
    """Finished, one for each seed."""
    non_finite: int = 0
    """Requests that ended because a number was not finite."""
    flat: int = 0
    """Requests that ended because a video was of one colour."""
    cancelled: int = 0
    """Requests that a service was told to drop."""
    failed: int = 0
    """Requests that a service could not finish for any other reason."""
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def count(self, what: str, by: int = 1) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + by)

    def ended(self, error: BaseException) -> None:
        """Count the end of a request that was under way."""
        kinds = {NotFinite: "non_finite", Flat: "flat"}
        self.count(
            next((name for kind, name in kinds.items() if isinstance(error, kind)), "failed")
        )

    def as_dict(self) -> dict[str, int]:
        names = [f.name for f in fields(self) if not f.name.startswith("_")]
        return {name: getattr(self, name) for name in names}


def check_binding(name: str, binding: Binding) -> None:
    """Raise NotFinite where an encoder made something else than numbers of a scene."""
    for what, tensor in binding.named():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"'{name}': {what} are not finite; the components are damaged")


def is_flat(frames: NDArray[np.uint8]) -> bool:
    """Tell whether frames uint8 [frames, height, width, 3] show one colour, whichever."""
    return bool(frames.reshape(-1, frames.shape[-1]).std(axis=0).max() < FLAT)


def latents_are_flat(latents: Tensor) -> bool:
    """Tell whether latents [channels, frames, rows, columns] are the same everywhere."""
    places = latents.flatten(1)
    return places.shape[1] > 1 and bool(places.std(1).max() < FLAT_LATENTS)
