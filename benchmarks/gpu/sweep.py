"""Stage tiles: which are fastest, and which self-attention; winners go into the run's tiles.json.

Sizes are tried first, then ways to feed the best of them: persistent programs, descriptors, warp
specialization. A candidate counts only if its output is that of the current tiles, up to twice
the rounding errors they have themselves.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks.gpu import attention, cross, rows, winners
from benchmarks.gpu.attention import HALF, STOCK
from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.problem import MOST, Problem, WrongOutput, relative_error, tensors
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import time_of
from lumosx_rt.kernels import tiles
from lumosx_rt.kernels.tiles import AttentionTiles, RowTiles, trying

Tiles = AttentionTiles | RowTiles
Feed = tuple[int, bool, bool]  # programs_per_sm, descriptors, warp_specialize
Use = tuple[Callable[..., Problem], tuple[Any, ...], str]
CURRENT = "current"
E4M3 = "triton e4m3"


@dataclass(frozen=True)
class Subject:
    """A kernel that has tiles."""

    entry: str
    """Its key in tiles.json."""
    shape: str
    uses: tuple[Use, ...]
    """Problems it is timed on, and the way to solve each that is its own; times are added."""
    sizes: tuple[Tiles, ...]
    feeds: tuple[Feed, ...] = ()

    @property
    def op(self) -> str:
        return self.entry.partition("/")[0]


class Uses:
    """A subject's problems, with what the current tiles make of them."""

    def __init__(self, scale: Scale, subject: Subject) -> None:
        self.solved = [(build(scale, *given), way) for build, given, way in subject.uses]

    @cached_property
    def current(self) -> list[tuple[Any, float]]:
        """Output and error of each. Raises WrongOutput where an error is too large already."""
        found = []
        for problem, way in self.solved:
            if not problem.judged(way)["ratio"] <= MOST:
                raise WrongOutput(f"'{way}' is wrong with the current tiles")
            found.append((problem.ways[way].run(), max(problem.errors(way))))
        return found

    def difference(self) -> float:
        """Largest difference of outputs from the current tiles', in errors of those."""
        return max(
            relative_error(own, expected) / max(error, 1e-30)
            for (problem, way), (output, error) in zip(self.solved, self.current, strict=True)
            for own, expected in zip(tensors(problem.ways[way].run()), tensors(output), strict=True)
        )


def cases(bench: Bench) -> Iterator[Case]:
    for subject in subjects(bench.scale):
        tried: dict[str, Tiles | None] = {CURRENT: None}
        tried |= {in_words(size): size for size in subject.sizes}
        yield from (_case(bench, subject, *candidate) for candidate in tried.items())
        plain = [made for name, made, _ in ranking(bench, subject.entry) if name in tried]
        best = plain[: bench.scale.best]
        more = {in_words(made): made for size in best for made in fed(size, subject.feeds)}
        new = {name: made for name, made in more.items() if name not in tried}
        yield from (_case(bench, subject, *candidate) for candidate in new.items())
        yield Case(f"{subject.entry}: winner", subject.shape, partial(_win, bench, subject))
    keys = bench.scale.keys(4, 16)
    for key, name in itertools.product(keys, ("triton", E4M3, *STOCK)):
        yield Case(f"self_attention: {name}", key, partial(_compete, bench, key, name))
    yield Case("self_attention: winner", " & ".join(keys), partial(_choose, bench, keys))


def subjects(scale: Scale) -> list[Subject]:
    """Every kernel with tiles, with the sizes to try; few of them in a rehearsal."""
    (key, *_) = scale.keys(4)
    (most, *_) = scale.keys(16, 4)
    width = next(width for width in (64, 128, 256) if scale.config.head_dim <= width)
    given, given_most = ((key,), 1, HALF), ((most,), 1, HALF)
    heights: tuple[Tiles, ...] = (RowTiles(2, 4),)
    feeds: tuple[Feed, ...] = ((1, True, False),)
    if not scale.rehearsal:
        heights = tuple(RowTiles(*pair) for pair in itertools.product((1, 2, 4, 8), (4, 8)))
        loading = [(False, False), (True, False)]
        if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (10, 0):
            loading.append((True, True))  # before, specialization changes nothing
        feeds = tuple((programs, *how) for programs in (0, 1, 2) for how in loading)
    by_rows = tuple(
        (name, tuple((rows.PROBLEMS[op], given_most, f"{op}: triton") for op in ops))
        for name, ops in (
            ("norm_modulate", ("norm_modulate", "norm_modulate, quantized")),
            ("qk_norm_rope", ("qk_norm_rope",)),
            ("gelu_quantize", ("gelu_quantize",)),
        )
    )
    half, e4m3 = ((attention.problem, given, f"triton{kind}") for kind in ("", " e4m3, quantized"))
    text = (cross.problem, given_most, "triton")
    return [
        Subject(f"relational_attention/half/{width}", key, (half,), sizes(scale, 64, 256), feeds),
        Subject(f"relational_attention/e4m3/{width}", key, (e4m3,), sizes(scale, 64, 512), feeds),
        Subject(
            f"relational_cross_attention/half/{width}",
            most,
            (text,),
            sizes(scale, 32, 256),
            tuple(feed for feed in feeds if not feed[2]),  # it has no warps to specialize
        ),
        *(Subject(name, most, uses, heights) for name, uses in by_rows),
    ]


def sizes(scale: Scale, narrowest: int, most_keys: int) -> tuple[Tiles, ...]:
    """Sizes of attention that may fit: key tiles not too narrow, so many keys in flight."""
    if scale.rehearsal:
        return (AttentionTiles(32, 16, 4, 1),)
    products = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    return tuple(
        AttentionTiles(m, n, warps, stages)
        for m, n, warps, stages in products
        if n >= narrowest and n * stages <= most_keys and (warps == 4) >= (m == 64 or n < 64)
        if not (m == n == 128 and warps == 4)
    )


def fed(size: Tiles, feeds: tuple[Feed, ...]) -> list[Tiles]:
    """The same tiles, fed in other ways."""
    if isinstance(size, RowTiles):
        return []
    return [
        replace(size, programs_per_sm=programs, descriptors=descriptors, warp_specialize=special)
        for programs, descriptors, special in feeds
    ]


def in_words(made: Tiles) -> str:
    """128x64 w8 s3 p1 descriptors specialized"""
    if isinstance(made, RowTiles):
        return f"{made.rows} rows w{made.num_warps}"
    parts = [f"{made.block_m}x{made.block_n}", f"w{made.num_warps}", f"s{made.num_stages}"]
    parts += [f"p{made.programs_per_sm}"] * bool(made.programs_per_sm)
    parts += ["descriptors"] * made.descriptors + ["specialized"] * made.warp_specialize
    return " ".join(parts)


def ranking(bench: Bench, entry: str) -> list[tuple[str, Tiles, float]]:
    """Candidates of an entry that were timed, the fastest first: name, tiles, ms."""
    found = []
    for row in bench.measured("tiles"):
        own, _, name = row["name"].partition(": ")
        if own == entry and "candidate" in row:
            kind = AttentionTiles if "block_m" in row["candidate"] else RowTiles
            found.append((name, kind(**row["candidate"]), sum(row["ms"]) / 2))
    return sorted(found, key=lambda candidate: candidate[2])


def _case(bench: Bench, subject: Subject, name: str, made: Tiles | None) -> Case:
    return Case(f"{subject.entry}: {name}", subject.shape, partial(_try, bench, subject, made))


def _current(scale: Scale, subject: Subject) -> Tiles:
    op, *dtype = subject.entry.split("/")
    if not dtype:
        return tiles.row_tiles(op, scale.device)
    name = {"half": "bfloat16"}.get(dtype[0], dtype[0])
    return tiles.attention_tiles(op, name, scale.config.head_dim, scale.device)


def _try(bench: Bench, subject: Subject, made: Tiles | None) -> Row:
    uses: Uses = bench.latest(Uses, bench.scale, subject)
    uses.current  # noqa: B018 with the tiles of the file, before others are tried
    with _with(subject.op, made):
        difference = uses.difference()
        if not difference <= MOST:
            raise WrongOutput(f"differs from the current tiles by {difference:.1f} errors of those")
        taken = [time_of(problem.ways[way].run, bench.scale.device) for problem, way in uses.solved]
    ms = [round(sum(part), 5) for part in zip(*(one["ms"] for one in taken), strict=True)]
    works = [problem.ways[way].work for problem, way in uses.solved]
    row: Row = {"ms": ms, "spread_ms": max(one["spread_ms"] for one in taken)}
    if len(works) == 1:
        row |= works[0].rates(sum(ms) / 2)
    candidate = asdict(_current(bench.scale, subject) if made is None else made)
    return row | {"difference": difference, "candidate": candidate}


def _with(op: str, made: Tiles | None) -> AbstractContextManager[None]:
    return nullcontext() if made is None else trying(op, made)


def _win(bench: Bench, subject: Subject) -> Row:
    found = ranking(bench, subject.entry)
    if not found:
        raise LookupError("no candidate is right")
    _, best, ms = found[0]
    source = {"source": f"measured: {bench.gpu}"}
    entry = asdict(best) | source
    if isinstance(best, AttentionTiles) and not best.plain:
        # plugins launch without a driver's help: theirs is the fastest that needs none
        plain = next((made for _, made, _ in found if made.plain), None)  # type: ignore[union-attr]
        if plain is None:
            raise LookupError("no plain candidate is right, and plugins need one")
        winners.write(bench, f"{subject.entry}/plain", asdict(plain) | source)
    winners.write(bench, subject.entry, entry)
    return {"entry": entry, "best_ms": ms}


def _compete(bench: Bench, key: str, name: str) -> Row:
    """Self-attention one way; ours with the tiles that won."""
    problem: Problem = bench.latest(attention.problem, bench.scale, (key,), 1, HALF)
    own = subjects(bench.scale)[0]
    found = ranking(bench, own.entry) if name == "triton" else []
    with _with(own.op, found[0][1] if found else None):
        return problem.timed(name)


def _choose(bench: Bench, keys: list[str]) -> Row:
    """The self-attention that takes least time over these scenes."""
    times: dict[str, list[Row]] = {}
    for row in bench.measured("tiles"):
        op, _, name = row["name"].partition(": ")
        if op == "self_attention" and "tflops" in row:
            times.setdefault(name, []).append(row)
    whole = {name: found for name, found in times.items() if len(found) == len(keys)}
    total = {name: sum(sum(row["ms"]) for row in found) for name, found in whole.items()}
    order = sorted((name for name in whole if name != E4M3), key=total.__getitem__)
    if not order:
        raise LookupError("no self-attention ran on every scene")
    rates = "; ".join(
        f"{name} {' and '.join(format(row['tflops'], '.0f') for row in whole[name])}"
        for name in order
    )
    source = f"measured: {bench.gpu}: TFLOP/s at {' and '.join(keys)}: {rates}"
    entry = {"name": order[0], "source": source}
    winners.write(bench, "self_attention", entry)
    # with its quantization, against the fastest in half precision
    ratio = total[E4M3] / total[order[0]] if E4M3 in total else None
    said = "did not run" if ratio is None else f"takes {ratio:.3f} of {order[0]}'s time"
    pays = {"faster": ratio is not None and ratio < 1, "source": f"measured: {bench.gpu}: {said}"}
    winners.write(bench, "self_attention/e4m3", pays)
    return {"entry": entry, "e4m3": pays}


def tiles_digest() -> str:
    """Of the tiles that kernels are launched with."""
    return hashlib.sha256(tiles.file_here().read_bytes()).hexdigest()[:12]
