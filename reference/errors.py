"""The exceptions users see. docs/errors.md lists what each refusal means."""


class LumosXError(Exception):
    """A refusal. The message states what was given, what is accepted, and what to do."""


def listing(title: str, problems: list[str]) -> str:
    """Join several problems into one message, so that a user can correct them all at once."""
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    return "\n".join([f"{title}: {len(problems)} problems", *(f"  - {p}" for p in problems)])


class NotFinite(LumosXError):
    """NaN or infinity appeared while a video was made. The message names the step and the place."""


class Flat(LumosXError):
    """A video, or its latents, has one value everywhere."""
