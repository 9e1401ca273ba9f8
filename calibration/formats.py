"""Number formats as values: one row each, and nothing else asks for a format by its name.

Imports no torch, because manifests are read without it.
"""

from dataclasses import dataclass

from lumosx_rt.reference.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Format:
    """What an engine's numbers are stored and computed in."""

    name: str
    weight_bytes: int
    """Bytes of a stored weight."""
    number_bytes: int
    """Bytes of an activation where a backend computes in this format."""
    quantized: bool = False
    """Whether it needs the scales of a calibration."""
    gate: float | None = None
    """How far an engine's final latents may be from the reference, relative, in the 2-norm. None:
    no such number exists, because what rounding costs depends on weights and request. There the
    reference, rounded so itself, says how much, and `ROUNDED_GATE` times as much is allowed."""
    forward_gate: float | None = None
    """The same for the velocity of one forward pass."""


FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        Format(name="fp32", weight_bytes=4, number_bytes=4, gate=1e-4, forward_gate=1e-5),
        Format(name="fp16", weight_bytes=2, number_bytes=2, gate=1e-3, forward_gate=1e-3),
        Format(name="bf16", weight_bytes=2, number_bytes=2),
        Format(name="fp8", weight_bytes=1, number_bytes=2, quantized=True),
    )
}
ROUNDED_GATE = 2.0
"""Times what the reference errs, rounded so itself."""
ROUNDING = 1e-6
"""How far two runs of one engine may be apart."""


def format_of(name: str) -> Format:
    """Look up a format. Raises LumosXError for one that does not exist."""
    if name not in FORMATS:
        raise BadInput(f"precision: got '{name}', accepted are {', '.join(FORMATS)}")
    return FORMATS[name]
