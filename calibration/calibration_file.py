"""calibration.json: the scales of a checkpoint, what runs in FP8, and where that comes from.

Plain data, read strictly: every problem is named in one error, and no number is taken on trust that
follows from others (a scale is its amax / 448). Scales of output channels are not in it: they
follow from the weights, whose hash is.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumosx_rt.calibration.scheme import Scales, Scheme
from lumosx_rt.calibration.sites import (
    UNQUANTIZED,
    is_attention,
    operands_of,
    operands_of_role,
    roles_of,
    sites_of,
)
from lumosx_rt.kernels.qdq import scale_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput, LumosXError, listing
from lumosx_rt.reference.files import read_json, write_atomically

if TYPE_CHECKING:
    from lumosx_rt.calibration.simulate import Simulation

FORMAT = 1
LIMIT_BYTES = 1 << 26


@dataclass(frozen=True)
class Site:
    """One site. Lists go over timestep bins, noisiest first."""

    amax: dict[str, list[float | None]]
    """Operand -> largest magnitude; None where nothing came by."""
    scales: dict[str, float]
    """Role (x; q, k, v) -> what divides it into e4m3's range."""
    weight_amax: list[float] | None
    """A linear's: of its smallest and its largest output channel."""
    flops: int
    """Over the scenes that sensitivity was measured on, one velocity each."""
    sqnr: list[float]
    """At the site, its operands exact, dB; empty where it cannot run in FP8."""
    velocity_sqnr: list[float]
    """Of the velocity when this site alone is in FP8, dB; empty likewise."""
    kept: str | None
    """Why it stays in high precision; None: it runs in FP8."""


@dataclass(frozen=True)
class Calibration:
    """The document. Its fields are the file's."""

    model: dict[str, Any]
    """Sizes and switches of the transformer."""
    checkpoint: dict[str, str]
    """sha256 of the weights."""
    scenes: dict[str, Any]
    """name, sha256, prompts, and `sensitivity`: the names of those it was measured on."""
    sampling: dict[str, Any]
    """frames, height, width (pixels), steps, shift, guidance."""
    bins: list[list[int]]
    """First and last time (0..1000) of every timestep bin."""
    precision: str
    """fp32 or bf16, of the model that was observed."""
    versions: dict[str, str]
    scheme: dict[str, Any]
    """A `Scheme`."""
    budget: float
    """Least SQNR of the velocity in the worst timestep bin, dB."""
    measured: dict[str, Any]
    """`chosen` and `front` (points of share, sqnr, kept), and `schemes`: everything in FP8."""
    sites: dict[str, Site]
    unquantized: tuple[str, ...] = UNQUANTIZED
    """What is never quantized, and why."""
    format: int = FORMAT

    @property
    def quantized(self) -> list[str]:
        """The sites that run in FP8."""
        return [name for name, site in self.sites.items() if site.kept is None]

    @property
    def scales(self) -> Scales:
        return {name: site.scales for name, site in self.sites.items()}

    def simulation(self, model: LumosX) -> "Simulation":
        """For `running(self.quantized)`. Raises LumosXError where the model is another."""
        from lumosx_rt.calibration.simulate import Simulation

        self.check(model)
        return Simulation(model, Scheme(**self.scheme), self.scales)

    def check(self, model: LumosX, sha256: str | None = None) -> None:
        """Raise one LumosXError for all that shows that this belongs to another checkpoint."""
        problems = []
        if sha256 is not None and sha256 != self.checkpoint["sha256"]:
            problems.append(
                f"it was made for weights with sha256 {self.checkpoint['sha256'][:12]}..., these "
                f"have {sha256[:12]}..."
            )
        if asdict(model.config) != self.model:
            other = [k for k, v in asdict(model.config).items() if self.model.get(k) != v]
            problems.append(f"it was made for a model of other {', '.join(other)}")
        else:
            problems += [
                f"`sites`: {name} has other largest weights than the model"
                for name, site in self.sites.items()
                if site.weight_amax and not _close(_weight_amax(model, name), site.weight_amax)
            ]
        if problems:
            raise BadInput(listing("calibration", problems) + "\ncalibrate this checkpoint anew")

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)
        write_atomically(path, text + "\n")


def scales_of(name: str, amax: dict[str, list[float | None]], scheme: Scheme) -> dict[str, float]:
    """A site's scales by role, from what was observed of its operands."""
    return {role: _scale(name, role, amax, scheme) for role in roles_of(name)}


def read_calibration(path: Path) -> Calibration:
    """Read and check a calibration. Raises one LumosXError naming everything that is wrong."""
    if path.is_file() and path.stat().st_size > LIMIT_BYTES:
        raise BadInput(f"{path}: larger than any calibration ({LIMIT_BYTES} bytes)")
    raw = read_json(path, LIMIT_BYTES)
    if type(raw.get("format")) is not int or raw["format"] < 1:
        raise BadInput(f"{path}: no calibration, it has no positive integer `format`")
    if raw["format"] > FORMAT:
        raise BadInput(
            f"{path}: format {raw['format']} is newer than {FORMAT}, the newest this version "
            "reads; upgrade lumosx-rt or calibrate again"
        )
    problems = list(_kind_problems(raw, Calibration, ""))
    if not problems:
        problems = [*_head_problems(raw), *_site_problems(raw)]
    if problems:
        raise BadInput(listing(str(path), problems) + "\ncalibrate again")
    sites = {name: Site(**site) for name, site in raw["sites"].items()}
    return Calibration(**raw | {"sites": sites, "unquantized": tuple(raw["unquantized"])})


def _kind_problems(raw: dict[str, Any], of: type, where: str) -> Iterator[str]:
    """Fields that are missing, unknown, or of another JSON type."""
    names = {f.name: str(getattr(f.type, "__name__", f.type)) for f in fields(of)}
    yield from (f"{where}`{name}` is missing" for name in names if name not in raw)
    yield from (f"{where}`{name}` is not known" for name in raw if name not in names)
    for name, kind in names.items():
        accepted = _json_types(name, kind)
        if name in raw and type(raw[name]) not in accepted:
            given = type(raw[name]).__name__
            yield f"{where}`{name}` must be {accepted[0].__name__}, got {given}"


def _json_types(name: str, kind: str) -> tuple[type, ...]:
    if name == "weight_amax":
        return list, type(None)
    if name == "kept":
        return str, type(None)
    if kind == "float":
        return float, int
    return {"str": (str,), "int": (int,), "dict": (dict,)}.get(kind.split("[")[0], (list,))


def _head_problems(raw: dict[str, Any]) -> Iterator[str]:
    try:
        if LumosXConfig(**raw["model"]) and len(raw["model"]) < len(fields(LumosXConfig)):
            yield "`model` must state every size and switch"
    except (LumosXError, TypeError) as error:
        yield f"`model`: {error}"
    try:
        Scheme(**raw["scheme"])
    except (LumosXError, TypeError) as error:
        yield f"`scheme`: {error}"
    for table in ("checkpoint", "scenes"):
        if not re.fullmatch("[0-9a-f]{64}", str(raw[table].get("sha256"))):
            yield f"`{table}` needs a sha256"
    if raw["precision"] not in ("fp32", "bf16"):
        yield f"`precision` is {raw['precision']!r}, accepted are fp32, bf16"
    if not math.isfinite(raw["budget"]):
        yield f"`budget` must be finite, got {raw['budget']}"
    for part in raw["bins"] or [None]:
        if not (isinstance(part, list) and [type(t) for t in part] == [int, int]):
            yield f"`bins` must hold [first, last] times, got {part!r}"


def _site_problems(raw: dict[str, Any]) -> Iterator[str]:
    try:
        config, scheme = LumosXConfig(**raw["model"]), Scheme(**raw["scheme"])
    except (LumosXError, TypeError):
        return
    wanted = sites_of(config)
    yield from (f"`sites`: {name} is missing" for name in wanted if name not in raw["sites"])
    for name, site in raw["sites"].items():
        where = f"`sites`: {name}: "
        if name not in wanted:
            yield f"`sites`: {name!r} is no site of this model"
        elif not isinstance(site, dict):
            yield f"{where}must be a table"
        elif kinds := list(_kind_problems(site, Site, where)):
            yield from kinds
        else:
            yield from _number_problems(name, site, scheme, len(raw["bins"]), where)


def _number_problems(
    name: str, site: dict[str, Any], scheme: Scheme, bins: int, where: str
) -> Iterator[str]:
    """Operands that are missing, numbers that are none, scales that are not their amax / 448."""
    amax, scales = site["amax"], site["scales"]
    for what, table, wanted in (
        ("amax", amax, operands_of(name)),
        ("scales", scales, roles_of(name)),
    ):
        if set(table) != set(wanted):
            yield f"{where}`{what}` must have {', '.join(wanted)}, got {', '.join(table) or 'none'}"
            return
    sound = True
    for operand, values in amax.items():
        numbers = values if isinstance(values, list) else []
        if len(numbers) != bins or not all(v is None or _magnitude(v) for v in numbers):
            sound = False
            yield f"{where}`amax` of {operand} must be {bins} finite numbers, 0 or more, or null"
    for role, scale in scales.items():
        if not _magnitude(scale) or not scale:
            yield f"{where}`scales` of {role} must be a finite number above 0, got {scale}"
        elif sound and scale != _scale(name, role, amax, scheme):
            yield f"{where}`scales` of {role} is {scale:.6g}, which is not its amax / 448"
    weight = site["weight_amax"]
    linear = not is_attention(name)
    if linear != (isinstance(weight, list) and len(weight) == 2 and all(map(_magnitude, weight))):
        yield f"{where}`weight_amax` must be two finite numbers for a linear, else null"
    for what in ("sqnr", "velocity_sqnr"):
        if not all(type(v) in (int, float) and math.isfinite(v) for v in site[what]):
            yield f"{where}`{what}` must be finite numbers"


def _scale(name: str, role: str, amax: dict[str, list[float | None]], scheme: Scheme) -> float:
    """An operand that no scene showed adds nothing; a role without any takes the least scale."""
    operands = operands_of_role(name, role, scheme.smooth_keys)
    return scale_of(max((v for o in operands for v in amax[o] if v is not None), default=0.0))


def _magnitude(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _weight_amax(model: LumosX, name: str) -> list[float]:
    weight: Any = model.get_submodule(name).weight
    channels = weight.detach().float().abs().amax(1)
    return [float(channels.min()), float(channels.max())]


def _close(found: list[float], stated: list[float]) -> bool:
    """Equal up to the rounding to bf16, in which a model may run."""
    pairs = zip(found, stated, strict=True)
    return all(math.isclose(a, b, rel_tol=2**-7, abs_tol=1e-30) for a, b in pairs)
