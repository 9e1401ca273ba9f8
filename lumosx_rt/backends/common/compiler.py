"""What makes an engine's graph, package or plan: the protocol of every backend's compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.packages import require

Report = Callable[[str], None]


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
        """The sizes that the result serves; defaults: of the checkpoint's videos."""

    def compile(
        self, model: LumosX, engine: Path, limits: Limits, report: Report
    ) -> dict[str, Any]:
        """Write `files` and what belongs beside them into the engine; returns facts to report."""

    def vouches_for(self, engine: Path) -> bool:
        """Whether finished `files` that lie there may be used."""


def calibration_for(
    precision: str | None, calibration: Path | None, random: bool
) -> Calibration | None:
    """The calibration of a request in FP8. Raises LumosXError where one is without the other."""
    if precision == "fp8" and calibration is None and not random:
        raise LumosXError(
            "precision: got 'fp8', which needs scales; make them with `lumosx-rt calibrate "
            "CHECKPOINT -o calibration.json` and name the file with --calibration"
        )
    if precision != "fp8" and calibration is not None:
        raise LumosXError(
            f"calibration: got {calibration}, only fp8 uses it; add --precision fp8, or leave it "
            "away"
        )
    if calibration is not None:
        return read_calibration(calibration)
    if precision == "fp8":
        require("calibration on noise", "modelopt")
    return None
