"""A backend as a value: what can be asked of a build, what compiles it, what loads it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy


@dataclass(frozen=True)
class LoadRequest:
    """An engine's part to be loaded, and how it shall run."""

    folder: Path
    manifest: Manifest
    provider: Provider = "auto"
    trust: bool = False
    """Run compiled code that was not made on this machine."""
    lossy: Lossy = EXACT


@dataclass(frozen=True, kw_only=True)
class BackendRoom:
    """A backend. Everything that differs between backends is behind these functions."""

    name: str
    options: type[Any]
    """A frozen dataclass of what can be asked of a build; every field has a default."""
    compiler: Callable[[Any, bool], Compiler]
    """(options, whether weights are random) -> what makes the engine's part. Raises LumosXError for
    what does not exist or does not go together, before any heavy work."""
    load: Callable[[LoadRequest], Backend]
    """Load the engine. Raises LumosXError for what does not fit."""
    advice: Mapping[str, str] = field(default_factory=dict)
    """For options of other backends: what to do instead."""

    @property
    def option_names(self) -> tuple[str, ...]:
        return tuple(found.name for found in fields(self.options))
