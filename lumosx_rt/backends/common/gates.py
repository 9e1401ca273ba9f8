"""How far an engine may be from the reference, as relative errors in the 2-norm."""

GATES = {"fp32": 1e-4, "fp16": 1e-3}
"""Of the final latents, by precision of the engine."""
FORWARD_GATES = {"fp32": 1e-5, "fp16": 1e-3}
"""Of the velocity of one forward pass."""
ROUNDED_GATE = 2.0
"""bf16 and fp8 have no such number: what their rounding costs depends on weights and request. There
the reference, rounded so itself, says how much, and an engine may err so many times as much."""
ROUNDING = 1e-6
"""What two runs of one engine may differ by."""
