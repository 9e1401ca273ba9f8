"""Names that wrappers have put something around, as they are without it.

torch.compile, DDP, FSDP, activation checkpointing, Lightning, PEFT and all-in-one files each add
segments, before a name or inside it. There is no list of them: a segment that the names of a model
never have is taken away where what is left is a name of the model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from lumosx_rt.reference.checkpoints import key_names
from lumosx_rt.reference.checkpoints.state import State
from lumosx_rt.reference.errors import MOST_LISTED, BadInput

_MOST_TAKEN = 2  # segments of a model's own words that stand where they do not belong
_PARTS = {  # where a file of everything keeps them
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer."),
    "text encoder": ("text_encoders.", "text_encoder.", "cond_stage_model.", "conditioner."),
    "VAE": ("vae.", "first_stage_model."),
}


@dataclass(frozen=True)
class Naming:
    """The names that one project gives the parameters of a model, of any depth."""

    pattern: str
    words: frozenset[str]

    @classmethod
    def of(cls, *rows: tuple[str, Iterable[str]], leaves: Iterable[str] = ()) -> "Naming":
        """rows: a pattern that begins names, and the stems that may follow it. leaves: names that
        do not end in weight, bias or gamma."""
        ends = [
            prefix + f"(?:{'|'.join(map(re.escape, stems))})" + r"\.(?:weight|bias|gamma)"
            for prefix, stems in rows
        ]
        words = {word for _, stems in rows for stem in stems for word in stem.split(".")}
        words |= {word for prefix, _ in rows for word in re.findall(r"(?<!\\)[a-z_]+", prefix)}
        return cls("|".join([*ends, *leaves]), frozenset(words - {""}))

    @cached_property
    def _known(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def knows(self, name: str) -> bool:
        return self._known.fullmatch(name) is not None

    def without_wrappers(self, name: str) -> str | None:
        """Return the name of the model's that is inside a name; None if there is none."""
        if self.knows(name):
            return name
        *segments, leaf = name.split(".")
        kept: list[str] = []
        for segment in segments:
            # a number counts in a row that has a name
            if segment in self.words if not segment.isdigit() else kept and not kept[-1].isdigit():
                kept.append(segment)
        if self.knows(found := ".".join([*kept, leaf])):
            return found
        words = [i for i, segment in enumerate(kept) if not segment.isdigit()]
        for count in range(1, _MOST_TAKEN + 1):
            for taken in combinations(words, count):
                left = [segment for i, segment in enumerate(kept) if i not in taken]
                if self.knows(found := ".".join([*left, leaf])):
                    return found
        return None


_BLOCKS = r"blocks\.\d+\."
_UNITS = r"(?:encoder|decoder)\.(?:middle|downsamples|upsamples)\.\d+\."
_RESNETS = (
    r"(?:encoder|decoder)\.(?:mid_block\.resnets\.\d+|down_blocks\.\d+"
    r"|up_blocks\.\d+\.(?:resnets\.\d+|upsamplers\.0))\."
)
NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    "transformer": (
        Naming.of(
            ("", key_names._TRANSFORMER),
            (_BLOCKS, key_names._BLOCK),
            leaves=(r"head\.modulation", rf"{_BLOCKS}modulation"),
        ),
        Naming.of(
            ("", key_names._TRANSFORMER.values()),
            (_BLOCKS, key_names._BLOCK.values()),
            leaves=("scale_shift_table", rf"{_BLOCKS}scale_shift_table"),
        ),
    ),
    "text encoder": (
        Naming.of(
            ("", [*key_names._T5, "pos_embedding.embedding"]), (_BLOCKS, key_names._T5_BLOCK)
        ),
        Naming.of(
            ("", [*key_names._T5.values(), "encoder.embed_tokens"]),
            (r"encoder\.block\.\d+\.", key_names._T5_BLOCK.values()),
        ),
    ),
    "VAE": (
        Naming.of(("", key_names._VAE), (_UNITS, key_names._VAE_UNIT)),
        Naming.of(("", key_names._VAE.values()), (_RESNETS, key_names._VAE_UNIT.values())),
    ),
}


def unwrapped(state: State, part: str) -> State:
    """Return a part's tensors under the names of the model, wrappers taken away.

    part: transformer, text encoder or VAE. A name in which there is none of the model's stays as it
    is, to be reported. Other parts of an all-in-one file are left out. Raises LumosXError where two
    names would be one.
    """
    names = _own(state.shapes, part)
    found = max(
        ({name: naming.without_wrappers(name) for name in names} for naming in NAMINGS[part]),
        key=lambda names: sum(name is not None for name in names.values()),
    )
    met: dict[str, str] = {}
    for name, new in found.items():
        if new is not None and met.setdefault(new, name) != name:
            raise BadInput(
                f"{state.source}: '{met[new]}' and '{name}' are both the {part}'s '{new}'; of "
                f"{in_common(state.shapes)}. Save one model's weights alone"
            )
    return state.renamed(lambda name: (found[name] or name) if name in found else None)


def must_be(state: State, part: str) -> State:
    """Return an unwrapped state, if some name in it is this part's. Raises LumosXError."""
    if any(naming.knows(name) for naming in NAMINGS[part] for name in state.shapes):
        return state
    raise BadInput(
        f"{state.source}: these are not the weights of a {part}: {in_common(state.shapes)}; "
        "accepted are the names that LumosX, Wan2.1 and diffusers or transformers give them, "
        "with anything around them"
    )


def _own(names: Iterable[str], part: str) -> list[str]:
    """Return the names that are not of another part, where a file has several."""
    own = [name for name in names if name.startswith(_PARTS[part])]
    others = tuple(prefix for other, some in _PARTS.items() if other != part for prefix in some)
    return [name for name in names if not (own and name.startswith(others))]


def in_common(names: Iterable[str]) -> str:
    """Say in a line what many names have in common: that they are a LoRA's, or how they begin."""
    names = list(names)
    if changes := sum("lora" in name.lower() for name in names):
        return f"{changes} of {len(names)} names are a LoRA's changes of weights, not weights"
    beginning = _common_beginning([name.split(".")[:-1] for name in names])
    if beginning and len(names) > 1:
        return f"all {len(names)} names begin with '{'.'.join(beginning)}.'"
    first = Counter(name.split(".")[0] for name in names).most_common()
    shown = ", ".join(f"'{word}' ({count})" for word, count in first[:MOST_LISTED])
    more = f" and {len(first) - MOST_LISTED} more" if len(first) > MOST_LISTED else ""
    return f"{len(names)} names, which begin with {shown or 'nothing'}{more}"


def _common_beginning(names: list[list[str]]) -> list[str]:
    least, most = min(names, default=[]), max(names, default=[])
    same = next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), None)
    return least[: min(len(least), len(most)) if same is None else same]
