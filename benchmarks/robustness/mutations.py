"""Ten thousand damaged files: each is read with one clear error, or its damage did not matter.

    python -m benchmarks.robustness.mutations -o benchmarks/results/mutations.json
    python -m benchmarks.robustness.mutations --count 50 --only image --first 17

Manifests, scenes, captions, pictures, checkpoints and calibrations are damaged at random: bytes
flipped, cut, repeated, inserted; values of JSON replaced by hostile ones. A case is (kind, number),
and always the same. Wrong is: another exception than LumosXError, an error without words, more than
SECONDS, memory that grows, anything made outside the case's folder. Exit status 1 where one is.
"""

import argparse
import copy
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.records import keep

SECONDS = 20
MEMORY_BYTES = 1 << 30
"""More than was held when the first case of a kind had been read."""
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 62, 1e308, float("nan"), float("inf"), "", "../../../canary",
    "/etc/passwd", "x" * 70_000, "\x00", "\ud800", [], {}, [[[[[]]]]], {"sha256": "0" * 64},
)  # fmt: skip


class Kind(NamedTuple):
    """What is damaged. make: writes a sound one into an empty folder; files: what of it may be
    damaged, as a pattern; read: what a user's command would do with it."""

    make: Callable[[Path], None]
    files: str
    read: Callable[[Path], None]
    json: bool = False


# -- what is read -------------------------------------------------------------------------------


def make_engine(folder: Path) -> None:
    from dataclasses import asdict

    from lumosx_rt.artifact.defaults import SMALL
    from lumosx_rt.artifact.manifest import GRAPH, Manifest, record_files
    from lumosx_rt.export.limits import Limits
    from lumosx_rt.reference.backbones.config import LumosXConfig

    (folder / GRAPH).parent.mkdir()
    (folder / GRAPH).write_bytes(b"graph" * 100)
    config = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=12)
    Manifest(
        model=asdict(config),
        checkpoint={"source": "random", "preset": "tiny", "seed": 0, "sha256": "0" * 64},
        backend="onnxruntime",
        precision="fp32",
        device={"name": "any"},
        versions={"torch": "2"},
        layouts=Limits.any_size(16).table(),
        defaults=SMALL,
        components={"vae": "1" * 64},
        files=record_files(folder),
    ).write(folder)


def read_engine(folder: Path) -> None:
    from lumosx_rt.artifact.manifest import check_files, read_manifest

    check_files(folder, read_manifest(folder))


def make_scene(folder: Path) -> None:
    from lumosx_rt.reference.scenes.builtin import builtin_scenes

    builtin_scenes()[2].save(folder)


def make_prompt_folder(folder: Path) -> None:
    make_scene(folder)
    for path in folder.glob("scene.toml"):
        path.unlink()


def read_scene(folder: Path) -> None:
    from lumosx_rt.reference.scenes.scene import Scene

    scene = Scene.load(folder)
    scene.check()
    scene.fitted(64, 96)


def make_checkpoint(folder: Path) -> None:
    import torch

    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.reference.backbones.config import LumosXConfig
    from lumosx_rt.reference.backbones.saving import save_bundle

    config = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=16, text_len=12)
    with torch.no_grad():
        save_bundle(folder, transformer=random_transformer(config, 0))


def make_torch_checkpoint(folder: Path) -> None:
    import torch

    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.reference.backbones.config import LumosXConfig

    config = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=16, text_len=12)
    torch.save({"ema": random_transformer(config, 0).state_dict()}, folder / "model.pt")
    (folder / "config.json").write_text(json.dumps(vars(config)))


def read_checkpoint(folder: Path) -> None:
    from lumosx_rt.reference.backbones.loading import load_transformer

    load_transformer(folder)


def read_torch_checkpoint(folder: Path) -> None:
    from lumosx_rt.reference.backbones.loading import load_state

    load_state(folder / "model.pt")


def make_calibration(folder: Path) -> None:
    from lumosx_rt.artifact.source import random_transformer
    from lumosx_rt.calibration.noise import noise_calibration
    from lumosx_rt.reference.backbones.config import LumosXConfig

    config = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=1, text_dim=16, text_len=12)
    noise_calibration(random_transformer(config, 0), "0" * 64).write(folder / "calibration.json")


def read_calibration(folder: Path) -> None:
    from lumosx_rt.calibration.calibration_file import read_calibration as read

    read(folder / "calibration.json")


KINDS = {
    "manifest": Kind(make_engine, "manifest.json", read_engine, json=True),
    "scene": Kind(make_scene, "scene.toml", read_scene),
    "caption": Kind(make_prompt_folder, "caption.txt", read_scene),
    "image": Kind(make_prompt_folder, "**/*.png", read_scene),
    "safetensors": Kind(make_checkpoint, "transformer/*", read_checkpoint),
    "torch file": Kind(make_torch_checkpoint, "model.pt", read_torch_checkpoint),
    "calibration": Kind(make_calibration, "calibration.json", read_calibration, json=True),
}


# -- damage -------------------------------------------------------------------------------------


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One to four changes of bytes; half of them near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        end = len(data) if draw.random() < 0.5 else min(len(data), 64)
        at = draw.randrange(end) if end else 0
        size = draw.choice((1, 1, 2, 4, 8, 64))
        match draw.randrange(6):
            case 0:
                data[at : at + size] = bytes(draw.randrange(256) for _ in range(size))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = bytes(draw.randrange(256) for _ in range(size))
            case 3:
                data[at:at] = data[at : at + 16 * size]
            case 4:
                data[at : at + size] = draw.choice((b"\x00", b"\xff")) * size
            case 5 if data:
                at = min(at, len(data) - 1)
                data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def damaged_json(text: str, draw: random.Random) -> bytes:
    """One to three values replaced, dropped or renamed."""
    content = json.loads(text)
    for _ in range(draw.randint(1, 3)):
        holders = list(_holders(content))
        if not holders:
            break
        holder = draw.choice(holders)
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match draw.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(draw.choice(HOSTILE))[:100]] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(draw.choice(HOSTILE))
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _holders(part)


# -- cases --------------------------------------------------------------------------------------


class Hang(BaseException):
    """A case took longer than SECONDS."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tree(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(without)}


def run_case(kind: Kind, sound: Path, place: Path, seed: str) -> str | None:
    """Damage a copy of `sound` at `place`/case and read it; returns what is wrong, or "refused"."""
    from lumosx_rt.reference.errors import LumosXError

    draw = random.Random(seed)
    case = place / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sound, case)
    target = draw.choice(sorted(path for path in case.glob(kind.files) if path.is_file()))
    content = target.read_bytes()
    structural = kind.json and draw.random() < 0.6
    target.write_bytes(
        damaged_json(content.decode(), draw) if structural else damaged(content, draw)
    )
    before = tree(place, case)
    try:
        with within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(case)
    except LumosXError as error:
        said = str(error).strip()
        if not said or "Traceback" in said:
            return f"an error without words: {said!r}"
        outcome: str | None = "refused"
    except Hang:
        return f"took more than {SECONDS} s"
    except Exception:
        return traceback.format_exc(limit=-3)
    else:
        outcome = None
    if tree(place, case) != before:
        return "made something outside its folder"
    return outcome


def run(
    names: Sequence[str], count: int, first: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """`count` cases over the kinds in turn; returns the record."""
    kinds: dict[str, Any] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        for number, name in enumerate(names):
            share = count // len(names) + (number < count % len(names))
            place, sound = Path(root, name, "place"), Path(root, name, "sound")
            place.mkdir(parents=True)
            sound.mkdir()
            kind = KINDS[name]
            kind.make(sound)
            kind.read(sound)  # undamaged, it is accepted
            held = 0
            found: dict[str, Any] = {"cases": share, "refused": 0, "harmless": 0, "wrong": {}}
            for i in range(first, first + share):
                outcome = run_case(kind, sound, place, f"{name} {i}")
                held = held or peak_bytes()
                if peak_bytes() > held + MEMORY_BYTES:
                    outcome, held = "memory grew", peak_bytes()
                if outcome in (None, "refused"):
                    found["refused" if outcome else "harmless"] += 1
                else:
                    found["wrong"][str(i)] = outcome
                if (i - first + 1) % 250 == 0:
                    report(f"{name}: {i - first + 1} of {share}, {len(found['wrong'])} wrong")
            found["peak_mib"] = peak_bytes() >> 20
            kinds[name] = found
    return {
        "cases": sum(found["cases"] for found in kinds.values()),
        "wrong": sum(len(found["wrong"]) for found in kinds.values()),
        "first": first,
        "seconds": round(time.monotonic() - started, 1),
        "kinds": kinds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", choices=KINDS, action="append")
    given = parser.parse_args(arguments)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    record = run(given.only or list(KINDS), given.count, given.first, report)
    keep(record, given.out)
    return 1 if record["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
