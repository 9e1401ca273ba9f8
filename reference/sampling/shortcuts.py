"""Lossy shortcuts: what a step reuses of an earlier one. They change the video; off by default.

    keys    References' keys and values change with time only through the modulation, and slowly.
            They are recomputed every `keys_every` steps and reused in between.
    skip    The first block runs at every step. If its residual (what it adds to the video) differs
            from that of the last whole step by at most `skip_below` of its size (mean absolute
            values; the largest over all streams and seeds), the other blocks do not run, and what
            they added then is added again.

What each saves, and what it does to identity and binding: `benchmarks/quality/shortcuts.py`.
"""

from dataclasses import dataclass

from lumosx_rt.reference.numbers import real_number, whole_number
from lumosx_rt.reference.sampling.schedules import TIMES


@dataclass(frozen=True)
class Lossy:
    """The lossy shortcuts of an engine; none by default. Raises LumosXError for other values.

    keys_every: recompute the references' keys and values only every N steps; 1 is exact.
    skip_below: skip all blocks but the first if its residual changed by at most this share; 0 is
    exact.
    """

    keys_every: int = 1
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        keys = whole_number(self.keys_every, "lossy keys (1 is exact)", 1, TIMES)
        skip = real_number(self.skip_below, "lossy skip (a share; 0 is exact)", 0, 1e12)
        object.__setattr__(self, "keys_every", keys)
        object.__setattr__(self, "skip_below", skip)

    @property
    def reuses_keys(self) -> bool:
        return self.keys_every > 1

    @property
    def skips_blocks(self) -> bool:
        return self.skip_below > 0

    def __bool__(self) -> bool:
        return self.reuses_keys or self.skips_blocks

    def __str__(self) -> str:
        said = []
        if self.reuses_keys:
            said.append(f"references' keys at every {self.keys_every} steps")
        if self.skips_blocks:
            said.append(f"blocks skipped below a change of {self.skip_below:g}")
        return ", ".join(said) or "none"


EXACT = Lossy()
