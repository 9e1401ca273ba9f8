"""What FP8 does to identity and binding, simulated on a CPU: paired with fp32 on held-out scenes.

    python -m benchmarks.quality.fp8 out/fp8 --list ci
    python -m benchmarks.quality.fp8 out/fp8 -o benchmarks/results/fp8_quality.json

    fp32    the reference
    bf16    linears and attention in bfloat16, as released
    fp8     the same, and in e4m3 what calibration.json says (linears and attention)

Scenes are made by all three in turn, so that a run that was stopped is paired as far as it came;
the same command goes on there. Passed: identity and binding in FP8 less those in fp32 are at
least -1 point, and at least -3 at the lower end of the 95 % interval.
"""

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.records import write
from lumosx_rt.bench.common.makers import MakeClip, Sampling, final_latents, reference_engine
from lumosx_rt.bench.quality.suite import Result, identity_of, run_suite
from lumosx_rt.bench.quality.table import as_text, compare, summarise
from lumosx_rt.bench.run import LISTS
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.calibration.sensitivity import decibels
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.world.story import Story
from lumosx_rt.runtime.engine import Engine

BUNDLE, CALIBRATION = Path("checkpoints/tiny"), Path("calibration/tiny/calibration.json")
TURN = 10  # scenes that one precision makes before the next one's turn
ESTIMATE, LOWEST = -0.01, -0.03  # of a rate's difference from fp32
JUDGED = ("identity", "binding")


def engines(bundle: Path, calibration: Calibration, stack: ExitStack) -> dict[str, Engine]:
    """The three, on the same weights and encoders."""
    whole = reference_engine(bundle)
    assert isinstance(whole.backend, EagerBackend)
    calibration.check(whole.backend.model, whole.manifest.checkpoint["sha256"])
    half, fp8 = (recast(whole.backend.model, torch.bfloat16) for _ in range(2))
    simulation = calibration.simulation(fp8)
    stack.enter_context(simulation.running(calibration.quantized))
    models = {"bf16": half, "fp8": fp8}
    return {"fp32": whole} | {
        name: Engine(bundle, whole.manifest, EagerBackend(model), bundle)
        for name, model in models.items()
    }


def maker(engine: Engine, sampling: Sampling, folder: Path) -> MakeClip:
    """Clips, their final latents kept as folder/NAME.npy, float32 [seeds, channels, ...]."""

    def make_clip(told: Story) -> NDArray[np.uint8]:
        latents = final_latents(engine, sampling, told)
        with replacing(folder / f"{told.name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, latents[None].numpy())
        return engine.vae.decode_frames_uint8(latents)

    return make_clip


def latent_sqnr(folder: Path, name: str, stories: Sequence[Story]) -> dict[str, float]:
    """Of the final latents against fp32's, dB: people -> over all their scenes together."""
    found: dict[str, tuple[float, float]] = {}
    for told in stories:
        exact, other = (
            np.load(folder / which / "latents" / f"{told.name}.npy").astype(np.float64)
            for which in ("fp32", name)
        )
        error, whole = float(((other - exact) ** 2).sum()), float((exact**2).sum())
        for group in (str(len(told.people)), "all"):
            noise, signal = found.get(group, (0.0, 0.0))
            found[group] = noise + error, signal + whole
    return {group: decibels(noise / signal) for group, (noise, signal) in sorted(found.items())}


def passed(difference: dict[str, Any]) -> bool:
    every = difference["groups"]["all"]
    return all(
        every[metric]["value"] >= ESTIMATE and every[metric]["low"] >= LOWEST for metric in JUDGED
    )


def record_of(
    results: dict[str, list[Result]], stories: Sequence[Story], folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """What is written; `passed` is null as long as scenes are missing."""
    record: dict[str, Any] = facts | {"scenes": len(stories), "precisions": {}}
    for name, found in results.items():
        part: dict[str, Any] = {"rates": summarise(found)}
        if name != "fp32":
            part["minus fp32"] = compare(found, results["fp32"])
            part["final_latent_sqnr_db"] = latent_sqnr(folder, name, stories)
        record["precisions"][name] = part
    finished = len(stories) == facts["of"]
    record["passed"] = passed(record["precisions"]["fp8"]["minus fp32"]) if finished else None
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where runs are kept")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/fp8_quality.json"))
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--calibration", type=Path, default=CALIBRATION)
    parser.add_argument("--list", choices=list(LISTS), default="full")
    given = parser.parse_args(arguments)
    calibration, sampling, chosen = (
        read_calibration(given.calibration),
        Sampling(),
        LISTS[given.list],
    )
    digest = hashlib.sha256(given.calibration.read_bytes()).hexdigest()
    facts = {
        "what": "FP8 (e4m3) simulated in torch on a CPU, against fp32 on the same scenes and noise",
        "list": chosen.name,
        "of": len(chosen.stories),
        "calibration": {
            "sha256": digest,
            "scheme": calibration.scheme,
            "quantized_sites": len(calibration.quantized),
            "sites": len(calibration.sites),
            "share_of_block_flops": calibration.measured["chosen"]["share"],
        },
        "target": {"metrics": JUDGED, "estimate": ESTIMATE, "low": LOWEST},
        "torch": torch.__version__,
    }
    with ExitStack() as stack:
        turns = {}
        for name, engine in engines(given.bundle, calibration, stack).items():
            what = {
                "precision": name,
                "transformer": engine.manifest.checkpoint["sha256"],
                "calibration": digest if name == "fp8" else None,
                "sampling": [sampling.steps, sampling.shift, sampling.guidance, sampling.frames],
                "torch": torch.__version__,
            }
            place = given.folder / name
            turns[name] = maker(engine, sampling, place / "latents"), place / "judged", what
        for end in range(TURN, len(chosen.stories) + TURN, TURN):
            stories = chosen.stories[:end]
            results = {
                name: run_suite(make, stories, place, identity_of("fp8", chosen, what))
                for name, (make, place, what) in turns.items()
            }
            record = record_of(results, stories, given.folder, facts)
            write(record, given.out)
            print(f"{len(stories)} of {len(chosen.stories)} scenes", flush=True)
    for name in ("bf16", "fp8"):
        print(f"\n{name} minus fp32")
        print(as_text(record["precisions"][name]["minus fp32"], signed=True))
    print(f"\npassed: {record['passed']}\n{given.out}")


if __name__ == "__main__":
    main()
