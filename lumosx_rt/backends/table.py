"""Every backend in one table: one row each. What compiles an engine, and what loads one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.onnxruntime.room import ONNXRUNTIME
from lumosx_rt.backends.tensorrt.room import TENSORRT
from lumosx_rt.backends.tensorrt_rtx.room import TENSORRT_RTX
from lumosx_rt.backends.torch.room import TORCH
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy

BACKENDS: dict[str, BackendRoom] = {
    room.name: room for room in (ONNXRUNTIME, TORCH, TENSORRT_RTX, TENSORRT)
}
AUTO = ONNXRUNTIME.name
"""What "auto" is: its graph runs on every machine."""
_UNSAID = (None, False, "auto")


def compiler_of(
    backend: str = "auto", options: Mapping[str, Any] | None = None, *, random: bool = False
) -> Compiler:
    """Look up the compiler for a build.

    options: of the backend, by name; None is its default. random: weights are drawn, so a quantized
    format needs no calibration yet. Raises LumosXError for a backend or an option that does not
    exist, and for what does not go together.
    """
    room = _room(AUTO if backend == "auto" else backend)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    known = {found for row in BACKENDS.values() for found in row.option_names}
    for name, value in given.items():
        if name not in known:
            raise Unsupported(
                f"build: '{name}' is no option, accepted are {', '.join(sorted(known))}"
            )
        if name not in room.option_names and not any(value is unsaid for unsaid in _UNSAID):
            having = " or ".join(row.name for row in BACKENDS.values() if name in row.option_names)
            instead = room.advice.get(name, "leave it away")
            raise Unsupported(
                f"{name}: got {value!r}, the backend {room.name} has no such option; {instead}, or "
                f"take --backend {having}"
            )
    own = {name: value for name, value in given.items() if name in room.option_names}
    return room.compiler(room.options(**own), random)


def load_backend(
    folder: Path,
    manifest: Manifest,
    provider: Provider = "auto",
    *,
    trust: bool = False,
    lossy: Lossy = EXACT,
) -> Backend:
    """Load what runs the engine in `folder`.

    provider: where onnxruntime runs; the others run where they were compiled for, and only that
    may be asked of them. trust: run compiled code that was not made on this machine. lossy: only
    graphs can leave parts of themselves out. Raises LumosXError for whatever does not fit.
    """
    if manifest.backend not in BACKENDS:
        raise Unsupported(
            f"{folder} was built for the backend '{manifest.backend}', this version runs "
            f"{', '.join(BACKENDS)}; build it again with --backend {AUTO}"
        )
    request = LoadRequest(folder, manifest, provider, trust, lossy)
    return BACKENDS[manifest.backend].load(request)


def _room(name: str) -> BackendRoom:
    if name not in BACKENDS:
        raise Unsupported(f"backend: got '{name}', accepted are auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]
