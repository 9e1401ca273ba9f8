"""What sizes one engine serves: for every axis of the graph the least, the usual and the most."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, NamedTuple

from lumosx_rt.reference.mechanisms.lumosx.layout import POOLING_BLOCK
from lumosx_rt.reference.sampling.inputs import AXES, LIMITS


class Range(NamedTuple):
    """Sizes of one axis; the usual one is what compilers tune for."""

    least: int
    usual: int
    most: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes of all axes; frames, height and width in tokens."""

    streams: Range
    seeds: Range
    frames: Range
    height: Range
    width: Range
    references: Range
    groups: Range
    members: Range
    tiles: Range

    @classmethod
    def any_size(cls, max_references: int) -> "Limits":
        """Whatever the graph itself allows, with so many references."""
        ranges = {axis: Range(least, least, most) for axis, (least, most) in LIMITS.items()}
        return cls(**ranges | _of_references(max_references))

    @classmethod
    def around(cls, size: tuple[int, int, int], *, max_references: int, max_seeds: int) -> "Limits":
        """Everything up to a video size (frames, rows, columns of tokens), upright or lying.

        Two streams, the guidance branches of one request; fewer stay possible also because
        TensorRT-RTX 1.7.1 crashes while building where streams and seeds are both fixed.
        """
        frames, *sides = size
        height, width = (Range(1, side, max(sides)) for side in sides)
        tiles = (-(-side // POOLING_BLOCK) for side in (*sides, max(sides)))
        rows, columns, most = tiles
        return cls(
            streams=Range(1, 2, 2),
            seeds=Range(1, 1, max_seeds),
            frames=Range(1, frames, frames),
            height=height,
            width=width,
            tiles=Range(1, rows * columns, most * most),
            **_of_references(max_references),
        )

    @classmethod
    def exactly(
        cls, size: tuple[int, int, int], *, max_references: int, max_seeds: int
    ) -> "Limits":
        """Return the limits of one video size alone."""
        around = cls.around(size, max_references=max_references, max_seeds=max_seeds)
        fixed = {
            axis: Range(usual, usual, usual)
            for axis in ("frames", "height", "width", "tiles")
            for usual in [getattr(around, axis).usual]
        }
        return replace(around, **fixed)

    def up_to(self, references: int) -> "Limits":
        """Return the same with no more than so many references."""
        return replace(self, **_of_references(references))

    def table(self) -> dict[str, list[int]]:
        """Return {axis: [least, most]}, as manifests state it."""
        return {f.name: [(r := getattr(self, f.name)).least, r.most] for f in fields(self)}

    def shapes(self, name: str, fixed: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the least, usual and most shape of a graph's input.

        fixed: its shape in the graph, negative where an axis is not fixed.
        """
        return [
            tuple(
                size if size >= 0 else _of_axis(str(axis), values)
                for size, axis in zip(fixed, AXES[name], strict=True)
            )
            for values in self._extremes()
        ]

    def _extremes(self) -> list[Mapping[str, Any]]:
        names = [f.name for f in fields(self)]
        return [dict(zip(names, sizes, strict=True)) for sizes in zip(*astuple(self), strict=True)]


def _of_references(most: int) -> dict[str, Range]:
    return {
        "references": Range(0, min(8, most), most),
        "groups": Range(1, min(3, most), most),
        "members": Range(1, min(4, most), most),
    }


def _of_axis(axis: str, values: Mapping[str, Any]) -> int:
    factor, _, name = axis.rpartition("*")
    return int(factor or 1) * int(values[name])
