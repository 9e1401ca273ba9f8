"""Two thousand command lines with hostile values: each ends with a reason, none with a traceback.

    python -m benchmarks.robustness.command_lines -o benchmarks/results/command_lines.json
    python -m benchmarks.robustness.command_lines --count 200 --first 5000

Every option of every command is given values that people and programs give by mistake: of other
kinds, out of bounds, in other encodings, names of files that are something else. Arguments, files
and engines are read and checked for real, by the program's own `main` with an ASCII terminal; what
takes long (encoders, sampling, training, compiling) ends with the refusal "reached". A line is
wrong if it shows a traceback, blames a bug, takes over 20 s, or exits with anything but 0, 1, 2 and
130. Exit status 1 where one is.
"""

import argparse
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import typer
from PIL import Image

from benchmarks.records import keep
from lumosx_rt.cli import main as program
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.builtin import builtin_scenes

SECONDS = 20
CODES = (0, 1, 2, 130)
HUGE = "99999999999999999999999"
NUMBERS = ["-1", "0", "1", "2", "3", "5", "7", "8", "16", "24", "1000", "1001", "16384", "32776",
           "1000000000", "9223372036854775808", HUGE, f"-{HUGE}", "1.5", "nan", "inf", "-inf",
           "1e3", "1e30", "1e300", "-1e300", "1e-300", "", " ", "x", "0x10", "1_000", "1,5",
           "\u0663", "\u00bd", "--", "0" * 5000]  # fmt: skip
TEXTS = ["", " ", "x", "-", "--", "auto", "none", "None", "null", "cpu", "cuda", "cuda:9", "%s",
         "{}", "[red]x", "[/red]", "\\", "'", '"', "a;b", "a\nb", "\x1b[31m", "é", "\u202e",
         "\U0001f388", "\udcff", "x" * 5000, "../..", "1x2", "1x2x3", "5x24x40x1", "-1x-8x-8",
         f"{HUGE}x8x8", "nanxnanxnan", "x.py:make", "json:loads", ":", "a:b:c", "fp8", "fp32",
         "bf16", "fp16", "torch", "tensorrt", "tensorrt-rtx", "onnxruntime", "sm_89", "sm_89,",
         ",", "4,16", "8GiB", "8", "1.5", "0GB", "1e9GB", "random", "listing", "face", "subject",
         "full", "ci", "binding", "speed", "vae-ceiling", "world-v1", "row", "channel"]  # fmt: skip
KEYS = ["21x30x52+1+4.4", "3x4x6+1+2.2", "1x1x1+0+", f"{HUGE}x1x1+1+1", "1x1x1+" + HUGE,
        "0x0x0+0+0", "+", "1x1+1", "-1x1x1+1+1", "1x1x1+1+1.1.1.1.1"]  # fmt: skip


class Reached(LumosXError):
    """The work itself would begin here."""


def reached(*given: Any, **settings: Any) -> Any:
    raise Reached("reached: what takes long")


class Outcome(NamedTuple):
    """What a command line did; wrong: why it should not have, None for a right one."""

    code: int | None
    wrong: str | None
    reached: bool


class Places:
    """Files and folders that are what commands want, and many that are not."""

    def __init__(self, root: Path, engine: Path, checkpoint: Path) -> None:
        self.engine, self.checkpoint, self.root = str(engine), str(checkpoint), root
        for scene in builtin_scenes():
            scene.save(root / "scenes" / scene.name)
        (root / "empty").mkdir()
        os.mkfifo(root / "pipe")
        (root / "circle").symlink_to("circle")
        (root / "gone").symlink_to("nowhere")
        Image.new("RGB", (8, 8)).save(root / "picture.png")
        for name, data in {
            "blank.json": b"", "list.json": b"[1]", "deep.json": b"[" * 99999, "text.txt": b"text",
            "object.json": b"{}", "sizes.json": b'{"dim": "wide", "num_heads": -1}',
            "huge.json": b'{"dim": 1' + b"0" * 40 + b"}", "bytes.bin": bytes(range(256)),
            "weights.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
            "weights.pth": b"\x80\x02.", "caption.txt": b"\xff\xfe", "scene.toml": b"caption = 3",
            "raises.py": b"raise ValueError('no')", "syntax.py": b"def make(:",
            "number.py": b"def make():\n    return 3\n", "results.jsonl": b"{\n",
        }.items():  # fmt: skip
            (root / name).write_bytes(data)
        (root / "bad").mkdir()
        (root / "bad" / "caption.txt").write_text("bad;nobody is here")
        (root / "damaged").mkdir()
        (root / "damaged" / "manifest.json").write_text('{"format": 99}')
        self.scenes = [str(root / "scenes"), str(root / "scenes" / "two-subjects")]
        self.files = [str(path) for path in sorted(root.iterdir())]
        self.files += ["", ".", "nowhere", "/dev/null", "/dev/zero", "/proc/self/mem", "x" * 300,
                       "/".join("x" * 3000), "\udcff\udcfe", str(root / "text.txt" / "x"),
                       "a\nb", "-", "é.png", "new.png", "new.json"]  # fmt: skip
        self.files = [path for path in self.files if not path.endswith("scenes")]
        self.recipes = [f"{root}/{name}.py:make" for name in ("raises", "syntax", "number", "none")]


def lines(places: Places, count: int, first: int = 0) -> Iterator[list[str]]:
    """Yield command lines, each drawn from its own number."""
    commands = typer.main.get_command(program.app).commands  # type: ignore[attr-defined]
    for number in range(first, first + count):
        draw = random.Random(number)
        name = draw.choice(sorted(commands))
        words = ["--log-level", draw.choice(TEXTS)] if draw.random() < 0.02 else []
        words.append(name)
        for parameter in commands[name].params:
            if parameter.param_type_name == "argument":
                words += _argument(draw, parameter.name, places)
        options = [p for p in commands[name].params if p.param_type_name == "option"]
        for option in draw.sample(options, min(len(options), draw.choice([0, 1, 1, 2, 2, 3, 5]))):
            if option.name != "help":
                kind = typing.get_type_hints(commands[name].callback)[option.name]
                words += _option(draw, option, kind, places)
        if draw.random() < 0.05:
            words.insert(draw.randrange(len(words) + 1), draw.choice([*TEXTS, "--nothing", "-9"]))
        yield words


def _argument(draw: random.Random, name: str, places: Places) -> list[str]:
    if draw.random() < 0.04:
        return []
    if draw.random() < 0.3:
        return [draw.choice([*places.files, *KEYS, *TEXTS])]
    right = {
        "engine": [places.engine],
        "model": [places.engine, places.checkpoint],
        "scenes": places.scenes,
        "checkpoint": [places.checkpoint],
        "bundle": [places.checkpoint],
        "recipe": ["tiny", *places.recipes],
        "path": [places.engine, places.checkpoint, *places.scenes, *KEYS],
    }
    return [draw.choice(right[name])]


def _option(draw: random.Random, option: Any, kind: Any, places: Places) -> list[str]:
    word = draw.choice(option.opts)
    if kind is bool:
        return [word]
    pool = [*TEXTS, *NUMBERS]
    for wanted, values in ((int, NUMBERS), (float, NUMBERS), (Path, places.files)):
        if wanted is kind or wanted in typing.get_args(kind):
            pool = values
    if draw.random() < 0.1:
        pool = [*NUMBERS, *TEXTS, *places.files]
    return [word] if draw.random() < 0.02 else [word, draw.choice(pool)]


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """Within it, what takes long is refused as reached; everything before it is as it is."""
    request = SimpleNamespace(warnings=(), name="request")
    with contextlib.ExitStack() as on:
        for target, double in {
            "lumosx_rt.runtime.engine.Engine.prepare": lambda *given, **settings: request,
            "lumosx_rt.runtime.engine.Engine.sample": reached,
            "lumosx_rt.parity.verify.verify": reached,
            "lumosx_rt.bench.run.run_suite": reached,
            "lumosx_rt.bench.run.sampled": reached,
            "lumosx_rt.bench.run.vae_alone": reached,
            "lumosx_rt.bench.run.bench_speed": reached,
            "lumosx_rt.artifact.source.CheckpointSource.load": reached,
            "lumosx_rt.artifact.source.RandomSource.load": reached,
            "lumosx_rt.builder.calibrate.Run": reached,
            "lumosx_rt.reference.training.pipeline.make_bundle": reached,
            "lumosx_rt.reference.world.train.course.Course.run": reached,
        }.items():
            on.enter_context(patch(target, double))
        yield


def ended(words: Sequence[str]) -> Outcome:
    """Run the program with these words, in this process, and judge how it ends."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True) for _ in range(2))
    before = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    code: Any = None
    wrong = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with patch.object(sys, "argv", ["lumosx-rt", *words]):
                program.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    told = "".join(stream.buffer.getvalue().decode() for stream in (out, err))
    if "Traceback" in told and "debug" not in words:
        wrong = told[-500:]
    elif "this is a bug" in told:
        wrong = told[-700:]
    elif wrong is None and code not in CODES:
        wrong = f"exit code {code}"
    return Outcome(code, wrong, "reached: " in told or code == 0)


def _late(number: int, frame: Any) -> None:
    raise TimeoutError(f"not ended after {SECONDS} s")


def run(
    places: Places, count: int, first: int = 0, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run so many command lines in a folder of their own and count how they end."""
    codes: Counter[str] = Counter()
    wrong, through, started = {}, 0, time.monotonic()
    here = os.getcwd()
    with without_work(), tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for number, words in enumerate(lines(places, count, first), first):
                outcome = ended(words)
                codes[str(outcome.code)] += 1
                through += outcome.reached
                if outcome.wrong:
                    wrong[str(number)] = {"words": ascii(words)[:500], "why": outcome.wrong}
                    report(f"{number}: {ascii(words)[:500]}: {outcome.wrong}")
        finally:
            os.chdir(here)
    return {
        "lines": count,
        "first": first,
        "wrong": wrong,
        "exit_codes": dict(sorted(codes.items())),
        "reached_the_work": through,
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first line")
    parser.add_argument("--engine", type=Path, default=Path("engines/tiny"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/tiny"))
    given = parser.parse_args(arguments)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as root:
        paths = given.engine.resolve(), given.checkpoint.resolve()
        record = run(Places(Path(root), *paths), given.count, given.first, report)
    keep(record, given.out)
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
