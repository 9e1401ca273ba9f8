"""What is measured together: six calls of at most ten minutes, in the order of what is asked first.

Nothing here imports torch: a supervisor reads it before any process has a GPU.
"""

from typing import NamedTuple


class Call(NamedTuple):
    """Stages of one run, and the minutes they may take together."""

    minutes: float
    stages: tuple[str, ...]
    asks: str


CALLS = {
    "works": Call(
        9, ("machine", "correctness", "first_forward", "small_package"), "does it work, and right?"
    ),
    "attention": Call(8, ("attention", "cross"), "which attention is fastest?"),
    "headline": Call(9, ("forward",), "how fast is a step, and where does its time go?"),
    "rest": Call(9, ("encoders", "end_to_end"), "how long is the rest of a video?"),
    "package": Call(10, ("full_package",), "does the whole model become a package, and how fast?"),
    "products": Call(10, ("products", "rows", "tiles"), "what are the parts worth, which tiles?"),
}
STAGES = tuple(stage for call in CALLS.values() for stage in call.stages)
ROW_LIMIT_S = {  # for one row, compilation included
    "forward": 400.0,
    "first_forward": 200.0,
    "small_package": 400.0,
    "full_package": 590.0,
    "encoders": 200.0,
    "end_to_end": 300.0,
}
OTHER_ROW_LIMIT_S = 90.0
