"""The one exception users see: what was given, what is accepted, what mends it."""


class LumosXError(Exception):
    """A refusal. The message states what was given, what is accepted and what mends it."""


def listing(title: str, problems: list[str]) -> str:
    """One message out of several problems, so that a user mends them all in one go."""
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    return "\n".join([f"{title}: {len(problems)} problems", *(f"  - {p}" for p in problems)])


class NotFinite(LumosXError):
    """NaN or infinity where a video should arise. The message names the step and the place."""


class Flat(LumosXError):
    """A video, or latents, of one colour."""
