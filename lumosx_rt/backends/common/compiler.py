"""What makes an engine's graph, package or plan: the protocol of every backend's compiler."""

from pathlib import Path
from typing import Any, Protocol

from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.calibration.formats import FORMATS, Format
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.progress import Report
from lumosx_rt.reference.sampling.shortcuts import Lossy


class Compiler(Protocol):
    """How one backend's part of an engine is made."""

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def document(self) -> Calibration | None:
        """The scales that the result carries, in FP8."""

    @property
    def files(self) -> tuple[str, ...]:
        """The graphs, packages or plans it makes, inside the engine, all in one folder of it."""

    @property
    def device(self) -> dict[str, Any]:
        """What the manifest says it was built for."""

    @property
    def provider(self) -> Provider | None:
        """Where the result is compared with the reference; None: it cannot run here, and `compile`
        compares what it was made of, under "parity" of its facts."""

    @property
    def options(self) -> dict[str, Any]:
        """What else the result depends on."""

    @property
    def versions(self) -> dict[str, str]: ...

    @property
    def bytes_per_parameter(self) -> int:
        """Of disk, at the most while it works."""

    @property
    def remedy(self) -> str:
        """What to try where the result is not close enough."""

    def limits(self, defaults: dict[str, Any], max_references: int) -> Limits:
        """Return the sizes that the result serves; defaults: of the checkpoint's videos."""

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        """Write `files` and what belongs beside them into the engine; returns facts to report."""

    def vouches_for(self, engine: Path) -> bool:
        """Tell whether finished `files` that lie there may be used."""


def calibration_for(numbers: Format, calibration: Path | None, random: bool) -> Calibration | None:
    """Read the calibration of a quantized format.

    random: weights are drawn, and scales are observed on noise later. Raises LumosXError where a
    format needs one and has none, or has one and needs none.
    """
    if numbers.quantized and calibration is None and not random:
        raise Unsupported(
            f"precision: got '{numbers.name}', which needs scales; make them with `lumosx-rt "
            "calibrate CHECKPOINT -o calibration.json` and name the file with --calibration"
        )
    if not numbers.quantized and calibration is not None:
        needing = ", ".join(name for name, found in FORMATS.items() if found.quantized)
        raise Unsupported(
            f"calibration: got {calibration}, only {needing} uses it; add --precision {needing}, "
            "or leave it away"
        )
    if calibration is not None:
        return read_calibration(Path(calibration))
    if numbers.quantized:
        require("calibration on noise", "modelopt")
    return None


def check_whole(folder: Path, manifest: Manifest, lossy: Lossy) -> None:
    """Raise LumosXError where shortcuts are asked of an engine that is compiled as a whole."""
    if lossy:
        raise Unsupported(
            f"lossy: {folder} is compiled as a whole ({manifest.backend}), and shortcuts leave "
            "parts out; build with --backend onnxruntime, or take none"
        )


def check_plan_provider(folder: Path, provider: Provider) -> None:
    """Raise LumosXError where a plan is asked to run anywhere but on a GPU."""
    if provider not in ("auto", "cuda"):
        raise Unsupported(
            f"provider: got '{provider}', {folder} is a plan for GPUs; build with --backend "
            "onnxruntime or torch, or leave --provider away"
        )
