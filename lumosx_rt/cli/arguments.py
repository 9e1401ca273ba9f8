"""Words of the command line as the values they mean. Nothing heavy is imported."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lumosx_rt.cli.console import USAGE, refuse, say


def loaded_engine(
    engine: Path,
    components: Path | None,
    provider: str,
    trust: bool,
    max_memory: str | None = None,
    unverified: bool = False,
    lossy: Any = None,
    *,
    max_device_memory: str | None = None,
    encoders_device: str = "auto",
) -> Any:
    """Load an engine. Print a note if it was never verified, and one if shortcuts are on.

    A provider that does not exist ends the program with a usage error.
    """
    from lumosx_rt.artifact.certificate import NotVerified
    from lumosx_rt.reference.sampling.shortcuts import EXACT
    from lumosx_rt.runtime.engine import load

    lossy = lossy or EXACT
    check_provider(provider)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", NotVerified)
        loaded = load(
            engine,
            components=components,
            provider=provider,  # type: ignore[arg-type]  # checked above
            trust=trust,
            unverified=unverified,
            max_memory=max_memory,
            max_device_memory=max_device_memory,
            encoders_device=encoders_device,  # type: ignore[arg-type]  # the engine checks it
            lossy=lossy,
        )
    if lossy:
        say(f"note: lossy ({lossy}): videos are not those that `verify` compares")
    for warning in noted:
        if issubclass(warning.category, NotVerified):
            say(f"note: {warning.message}")
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return loaded


def shortcuts(keys: int, skip: float) -> Any:
    """A `Lossy`; exact where nothing was asked for. Raises LumosXError."""
    from lumosx_rt.reference.sampling.shortcuts import Lossy

    return Lossy(keys_every=keys, skip_below=skip)


def check_sampling(
    steps: int | None, guidance: float | None, shift: float | None, seeds: Sequence[int] = (0,)
) -> None:
    """Raise LumosXError for settings that no engine takes; None is an engine's own."""
    from lumosx_rt.reference.sampling import request

    request.check_sampling(
        seeds,
        1 if steps is None else steps,
        1.0 if shift is None else shift,
        1.0 if guidance is None else guidance,
    )


def check_provider(provider: str) -> None:
    """End the program with a usage error for a provider that does not exist."""
    from lumosx_rt.backends.common.devices import PROVIDERS

    check_choice("--provider", provider, PROVIDERS)


def check_choice(option: str, value: str, accepted: Sequence[str]) -> None:
    """End the program with a usage error for a value that is not accepted."""
    if value not in accepted:
        refuse(f"{option}: got '{value}', accepted are {', '.join(accepted)}", USAGE)


def video_size(
    defaults: dict[str, Any], frames: int | None, height: int | None, width: int | None
) -> Any:
    """A `VideoSize` in pixels; what is not given is the default's."""
    from lumosx_rt.reference.scenes.video_size import VideoSize

    given = {"frames": frames, "height": height, "width": width}
    return VideoSize(**{k: defaults[k] if v is None else v for k, v in given.items()})


def largest_size(size: str | None) -> Any:
    """A `VideoSize` from text like 81x480x832; None from None. Raises LumosXError."""
    from lumosx_rt.reference.errors import BadInput
    from lumosx_rt.reference.scenes.video_size import VideoSize

    if size is None:
        return None
    try:
        frames, height, width = (int(side) for side in size.split("x"))
    except ValueError:
        raise BadInput(f"max_size: got '{size}', accepted is like 81x480x832") from None
    return VideoSize(frames, height, width)


def transformer_config(path: Path | None) -> Any:
    """A `LumosXConfig` from a JSON file; None from None. Raises LumosXError."""
    from lumosx_rt.reference.backbones.config import LumosXConfig
    from lumosx_rt.reference.errors import BadInput
    from lumosx_rt.reference.files import read_json

    if path is None:
        return None
    try:
        return LumosXConfig.from_dict(read_json(path))
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: not the transformer's sizes ({error})") from None


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


Components = Annotated[
    Path | None,
    typer.Option(help="Folder with text encoder, tokenizer and VAE, if the engine has none."),
]


Checkpoint = Annotated[
    Path | None, typer.Option(help="The weights the engine was built from, if they were moved.")
]


Provider = Annotated[
    str,
    typer.Option(
        help="Where onnxruntime runs: auto (cuda if there is one, else cpu), cpu, cuda, "
        "tensorrt or tensorrt-rtx. An explicit one never falls back."
    ),
]


Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run compiled code that was not made on this machine."),
]


LossyKeys = Annotated[
    int,
    typer.Option(
        help="Recompute the references' keys and values only every N steps. Lossy; 1 (default) "
        "is exact."
    ),
]


LossySkip = Annotated[
    float,
    typer.Option(
        help="Skip all blocks but the first if its residual changed by at most this share, "
        "like 0.1. Lossy; 0 (default) is exact."
    ),
]


Frames = Annotated[int | None, typer.Option(help="Frames of the video, 1 + 4k.")]


Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]


Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")]
