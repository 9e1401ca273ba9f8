"""Where every token of a LumosX sequence sits.

`SceneLayout` is derived once from a handful of integers and says everything structural about a
scene: which tokens exist, who may see whom (CSAM), where each token stands in rotary space (R2PE),
which pooled score biases it (MCAM). Graphs, engines and kernels are specialised on it; nothing
structural is rebuilt inside the model. Plain numpy, no torch.

    [ video frames | lone references | subject 0 | subject 1 | ... ]    one frame = H*W tokens
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.kinds import checked

POOLING_BLOCK = 8  # MCAM pools queries over 8x8 token blocks
ROPE_TABLE = 1024  # the released rotary tables hold positions 0..1023 on each axis

TokenRange = tuple[int, int]


class SceneShape(Protocol):
    """What a layout needs to know of a scene."""

    @property
    def lone(self) -> int:
        """Pictures that stand alone: background and objects."""

    @property
    def subject_sizes(self) -> tuple[int, ...]:
        """Pictures of each subject."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """Reference groups as data, so that one graph serves every grouping.

    index: int64 [groups, members], frames (video frames first, then references); padded with 0.
    mask: bool [groups, members], False where padded.
    inverse: int64 [references], where reference r stands in the flattened [groups * members].
    """

    index: NDArray[np.int64]
    mask: NDArray[np.bool_]
    inverse: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SceneLayout:
    """Where every token of a LumosX sequence sits (docs/spec.md#tokens, #csam to #mcam). Frozen and
    hashable."""

    video_frames: int
    """Latent frames of the video: 21 for 81 pixel frames."""
    height: int
    """Token rows per frame: latent rows / 2, rounded up."""
    width: int
    """Token columns per frame."""
    lone: int = 0
    """Background and objects: one frame each, each its own group."""
    subjects: tuple[int, ...] = ()
    """Frames (face and attributes) of each subject."""
    relational_positions: bool = True
    """R2PE: a subject takes one time slot, its frames lie on the diagonal. False: a slot each."""
    relational_visibility: bool = True
    """CSAM: references see their own group only. False: everything sees everything."""
    raster_tiling: bool = True
    """MCAM scores are unrolled over the padded raster and cropped, as released. False: by place."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subjects", tuple(int(n) for n in self.subjects))
        problems = [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("video_frames", self.video_frames, 1),
                ("height", self.height, 1),
                ("width", self.width, 1),
                ("lone", self.lone, 0),
                *((f"subjects[{i}]", n, 1) for i, n in enumerate(self.subjects)),
            )
            if value < least
        ]
        if not problems:
            slots = (
                self.references if not self.relational_positions else self.lone + len(self.subjects)
            )
            diagonal = max(self.subjects, default=1) if self.relational_positions else 1
            last = max(self.video_frames + slots, diagonal * max(self.height, self.width)) - 1
            if last >= ROPE_TABLE:
                problems.append(
                    f"a rotary position of {last} is needed, tables end at {ROPE_TABLE - 1}; "
                    "use fewer images in one subject or a smaller frame"
                )
        if problems:
            raise BadInput("layout: " + "; ".join(problems))

    # -- counts ---------------------------------------------------------------------------------

    @property
    def references(self) -> int:
        return self.lone + sum(self.subjects)

    @property
    def frame_tokens(self) -> int:
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        return self.video_frames * self.frame_tokens

    @property
    def tokens(self) -> int:
        return (self.video_frames + self.references) * self.frame_tokens

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Groups, and members of the largest."""
        groups, members = self.grouping.index.shape
        return groups, members

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that an engine is built for a range of, by axis."""
        return {
            "frames": self.video_frames,
            "height": self.height,
            "width": self.width,
            "references": self.references,
            "members": self.group_sizes[1],
        }

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Equal for layouts that can be streams of one call: only groupings may differ."""
        return self.video_frames, self.height, self.width, self.references, self.raster_tiling

    @property
    def seeds_share_references(self) -> bool:
        """Whether references never see the video, so that all seeds can share them."""
        return self.relational_visibility

    # -- who sees whom (CSAM) -------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[TokenRange, ...]:
        """Frame ranges [start, stop) of the reference groups; frame 0 is the video's first."""
        edges = np.cumsum([self.video_frames, *[1] * self.lone, *self.subjects]).tolist()
        return tuple(zip(edges[:-1], edges[1:], strict=True))

    @cached_property
    def attention_ranges(self) -> tuple[tuple[TokenRange, TokenRange], ...]:
        """(queries, keys) as token ranges: the video over everything, each group over itself."""
        if not self.relational_visibility:
            return (((0, self.tokens), (0, self.tokens)),)
        spans = [(a * self.frame_tokens, b * self.frame_tokens) for a, b in self.groups]
        return (((0, self.video_tokens), (0, self.tokens)), *((span, span) for span in spans))

    @property
    def attended_pairs(self) -> int:
        """(query, key) pairs of self-attention."""
        return sum((b - a) * (d - c) for (a, b), (c, d) in self.attention_ranges)

    @cached_property
    def grouping(self) -> Grouping:
        """The groups as padded index tensors; never none (a dummy names video frame 0)."""
        frames = [list(range(a, b)) for a, b in self.groups]
        if not self.relational_visibility and frames:
            frames = [list(range(self.video_frames + self.references))]
        frames = frames or [[0]]
        members = max(map(len, frames))
        index = np.zeros((len(frames), members), np.int64)
        mask = np.zeros((len(frames), members), np.bool_)
        inverse = np.zeros(self.references, np.int64)
        for g, group in enumerate(frames):
            index[g, : len(group)] = group
            mask[g, : len(group)] = True
            for m, frame in enumerate(group):
                if frame >= self.video_frames:
                    inverse[frame - self.video_frames] = g * members + m
        return Grouping(index, mask, inverse)

    # -- where it stands (R2PE) -----------------------------------------------------------------

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """Relational (t, h, w) of every token: int32 [tokens, 3] (docs/spec.md#r2pe)."""
        starts = [
            (f, 0) for f in range(self.video_frames + self.lone)
        ]  # (time slot, diagonal step)
        slot = len(starts)
        for size in self.subjects:
            if self.relational_positions:
                starts += [(slot, step) for step in range(size)]
                slot += 1
            else:
                starts += [(slot + step, 0) for step in range(size)]
                slot += size
        time, step = np.array(starts, np.int32).T[:, :, None, None]
        row = np.arange(self.height, dtype=np.int32)[:, None]
        column = np.arange(self.width, dtype=np.int32)
        place = np.broadcast_arrays(time, step * self.height + row, step * self.width + column)
        return np.stack(place, axis=-1).reshape(-1, 3)

    # -- which score biases it (MCAM) -----------------------------------------------------------

    @property
    def tile_rows(self) -> int:
        return -(-self.height // POOLING_BLOCK)

    @property
    def tile_columns(self) -> int:
        return -(-self.width // POOLING_BLOCK)

    @property
    def tiles(self) -> int:
        return self.tile_rows * self.tile_columns

    @cached_property
    def pooling_tiles(self) -> NDArray[np.int32]:
        """The 8x8 tile that contains each token of a frame: int32 [frame_tokens]."""
        row, column = np.divmod(np.arange(self.frame_tokens, dtype=np.int32), np.int32(self.width))
        return row // POOLING_BLOCK * self.tile_columns + column // POOLING_BLOCK

    @cached_property
    def bias_tiles(self) -> NDArray[np.int32]:
        """The tile whose score biases each token of a frame: int32 [frame_tokens].

        As released (docs/spec.md#m2) scores are unrolled over the raster padded to whole tiles,
        and its first H*W entries kept: not the tile a token is in, unless W is a multiple of 8.
        """
        if not self.raster_tiling:
            return self.pooling_tiles
        padded_width = np.int32(self.tile_columns * POOLING_BLOCK)
        row, column = np.divmod(np.arange(self.frame_tokens, dtype=np.int32), padded_width)
        return row // POOLING_BLOCK * self.tile_columns + column // POOLING_BLOCK

    # -- its name -------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """Its name in files, tests and tables: `21x30x52+1+4.4`, then what is switched off."""
        subjects = ".".join(map(str, self.subjects)) or "-"
        switches = "".join(
            f"+{name}" for name, switch in _SWITCHES.items() if not getattr(self, switch)
        )
        return f"{self.video_frames}x{self.height}x{self.width}+{self.lone}+{subjects}{switches}"

    @classmethod
    @checked
    def from_key(cls, key: str) -> "SceneLayout":
        """Return the layout named by a `key`. Raises LumosXError if it is not one."""
        number = r"\d{1,9}"
        match = re.fullmatch(
            rf"({number})x({number})x({number})\+({number})"
            rf"\+(-|{number}(?:\.{number})*)((?:\+\w+)*)",
            key,
        )
        switches = match[6].split("+")[1:] if match else []
        if match is None or not set(switches) <= set(_SWITCHES):
            raise BadInput(
                f"layout: '{key}' is not FRAMESxHEIGHTxWIDTH+LONE+SUBJECTS, like 21x30x52+1+4.4 "
                f"(no subjects: -; switched off: {', '.join('+' + s for s in _SWITCHES)})"
            )
        frames, height, width, lone = map(int, match.groups()[:4])
        layout = cls(
            video_frames=frames,
            height=height,
            width=width,
            lone=lone,
            subjects=() if match[5] == "-" else tuple(map(int, match[5].split("."))),
            **{_SWITCHES[name]: False for name in switches},
        )
        if layout.key != key:
            raise BadInput(f"layout: '{key}' is written {layout.key}")
        return layout


def layout_of(scene: SceneShape, grid: tuple[int, int, int]) -> SceneLayout:
    """Lay out a scene for a video of grid = (latent frames, token rows, token columns)."""
    frames, height, width = grid
    return SceneLayout(
        video_frames=frames,
        height=height,
        width=width,
        lone=scene.lone,
        subjects=scene.subject_sizes,
    )


_SWITCHES = {
    "nopos": "relational_positions",
    "novis": "relational_visibility",
    "notiling": "raster_tiling",
}
