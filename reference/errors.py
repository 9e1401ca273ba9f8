"""The exceptions users see. docs/errors.md lists what each refusal means."""


class LumosXError(Exception):
    """A refusal. The message states what was given, what is accepted, and what to do."""

    code = "refused"
    """What kind of refusal it is, in one word for programs; it stays from version to version."""


class BadInput(LumosXError):
    """What was given is wrong: a file, a scene, a number, a name."""

    code = "bad_input"


class Unsupported(LumosXError):
    """What was asked for is sound, but not had here: by this engine, device or installation."""

    code = "unsupported"


class TooLittleMemory(LumosXError):
    """It does not fit into the memory or the disk that there is, or that was allowed."""

    code = "memory"


MOST_LISTED = 10


def listing(title: str, problems: list[str]) -> str:
    """Join several problems into one message, so that a user can correct them all at once.

    The first ten are listed, the rest counted.
    """
    if len(problems) == 1:
        return f"{title}: {problems[0]}"
    lines = [f"  - {problem}" for problem in problems[:MOST_LISTED]]
    if len(problems) > MOST_LISTED:
        lines.append(f"  and {len(problems) - MOST_LISTED} more")
    return "\n".join([f"{title}: {len(problems)} problems", *lines])


class NotFinite(LumosXError):
    """NaN or infinity appeared while a video was made. The message names the step and the place."""

    code = "not_finite"


class Flat(LumosXError):
    """A video, or its latents, has one value everywhere."""

    code = "flat"
