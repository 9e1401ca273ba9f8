"""Is it the same video? An engine against the PyTorch reference, from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.artifact import certificate
from lumosx_rt.artifact.manifest import CALIBRATION, GRAPH, PICTURE
from lumosx_rt.artifact.report import write_report
from lumosx_rt.artifact.source import source_of
from lumosx_rt.backends.common.forward_parity import rounded_backend
from lumosx_rt.backends.common.fp8_layers import layer_parity
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.calibration.formats import ROUNDED_GATE, ROUNDING, format_of
from lumosx_rt.parity.comparison import comparison_picture
from lumosx_rt.parity.quirks import check_quirks
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.metrics import peak_signal_to_noise, relative_error
from lumosx_rt.reference.progress import Progress, quiet
from lumosx_rt.reference.sampling.denoise import denoise
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Backend
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.world.judge import ssim
from lumosx_rt.runtime.engine import Engine
from lumosx_rt.runtime.guards import is_flat

Frames = NDArray[np.uint8]


@checked
def verify(
    engine: Engine,
    scenes: Sequence[Scene],
    *,
    checkpoint: str | Path | None = None,
    size: VideoSize | None = None,
    steps: int = 8,
    seeds: Sequence[int] = (0,),
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Sample scenes with engine and reference from the same noise, and write the engine's report.

    checkpoint: the weights the engine was built from, where they are not found by themselves.
    progress: shown every step of both. Returns the report's section: `passed`, the
    (largest) `gate`, what undoing each quirk of docs/spec.md would change (`check_quirks`), and per
    scene its own gate, the error of the latents after every step, the PSNR and SSIM of the decoded
    frames, whether they are finite and not flat, and the errors of two engine runs that are wrong
    on purpose (`compare`). Of an engine in FP8 also, under `fp8`, what of it is quantized, and its
    graph looked into, product by product (`layer_parity`). The picture is of the worst scene.
    Raises LumosXError where it cannot compare.
    """
    if not scenes:
        raise BadInput("verify: needs at least one scene")
    requests = [engine.prepare(scene, size=size, steps=steps, seeds=seeds) for scene in scenes]
    model = source_of(engine.manifest, checkpoint).load()
    reference = EagerBackend(model)
    numbers = format_of(engine.manifest.precision)
    document = read_calibration(engine.folder / CALIBRATION) if numbers.quantized else None
    gate = numbers.gate or rounded_backend(model, document)
    results: list[dict[str, Any]] = []
    worst: tuple[dict[str, Any], Frames, Frames] | None = None
    total = 2 * steps * len(requests)
    for request in requests:
        before = 2 * steps * len(results)

        def sampled(what: str, done: int, before: int = before) -> None:
            progress(what, before + done + steps * what.endswith("engine"), total)

        result, pair = compare(engine, reference, request, gate, sampled)
        results.append(result)
        if pair is not None and (worst is None or _badness(result) > _badness(worst[0])):
            worst = (result, *pair)
    fp8 = {} if document is None else {"fp8": _fp8_check(engine, model, document)}
    widest = max(requests, key=lambda request: request.layout.references)
    allowed = numbers.forward_gate or rounded_backend(model, document)
    section = {
        "passed": all(result["passed"] for result in [*results, *fp8.values()]),
        "engine_sha256": certificate.digest_of(engine.folder),
        "quirks": check_quirks(engine.backend, reference, widest, engine.config.head_dim, allowed),
        "gate": max(result["gate"] for result in results),
        "steps": steps,
        "seeds": list(seeds),
        "guidance": requests[0].guidance,
        "engine": engine.backend.describe(),
        "reference": reference.describe(),
        "scenes": results,
        **fp8,
    }
    if worst is not None:
        with replacing(engine.folder / PICTURE) as temporary:
            comparison_picture(*worst).save(temporary, format="PNG")
    write_report(engine.folder, engine.manifest, verify=section)
    return section


def _badness(result: dict[str, Any]) -> float:
    """Return the final error over what is allowed."""
    error = result["final_relative_error"]
    return float("inf") if error is None else float(error / result["gate"])


def _fp8_check(engine: Engine, model: LumosX, document: Calibration) -> dict[str, Any]:
    """Return what FP8 is in an engine, and whether its graph, where there is one, is what it
    says."""
    facts: dict[str, Any] = {
        "passed": True,
        "sites": len(document.sites),
        "quantized": len(document.quantized),
        "calibrated_on": document.scenes["name"],
    }
    graph = engine.folder / GRAPH
    if graph.is_file():
        try:
            facts |= layer_parity(graph, model, document, document.quantized)
        except LumosXError as error:
            facts |= {"passed": False, "problem": str(error)}
    return facts


def compare(
    engine: Engine,
    reference: Backend,
    request: Request,
    gate: float | Backend,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> tuple[dict[str, Any], tuple[Frames, Frames] | None]:
    """Run one request on engine and reference, free-running from the same noise, and two controls;
    and the frames that both made of the first seed, uint8 [frames, height, width, 3].

    gate: the largest error of the final latents, or what errs itself, of which `ROUNDED_GATE` times
    as much is allowed.
    Controls are engine runs that are wrong on purpose: without words (which must differ from the
    engine's own, or words do nothing) and without relations (whose error must exceed the gate).
    """

    def run(backend: Backend, asked: Request, what: str = "") -> list[Tensor]:
        """Latents after every step; fewer than all where they stopped being finite."""
        states = []
        try:
            for state in denoise(backend, asked, engine.config.head_dim):
                if state.step:
                    states.append(state.latents)
                if what:
                    progress(f"{request.name}: {what}", state.step)
        except LumosXError:
            if backend is not engine.backend:
                raise
        return states

    expected = run(reference, request, "reference")
    rounded = None
    if not isinstance(gate, float):
        rounded = relative_error(run(gate, request)[-1], expected[-1])
        gate = ROUNDED_GATE * rounded
    actual = run(engine.backend, request, "engine")
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=False)]
    sound = len(actual) == len(expected)
    final = errors[-1] if sound else None
    psnr = likeness = pair = None
    if sound:
        frames, wanted = (
            engine.vae.decode_frames_uint8(states[-1][:1]) for states in (actual, expected)
        )
        pair, psnr = (frames, wanted), peak_signal_to_noise(frames, wanted)
        both = zip(frames, wanted, strict=True)
        likeness = float(np.mean([ssim(a[None], b[None]) for a, b in both]))
        sound = not is_flat(frames)

    def distance(wrong: Request, right: list[Tensor]) -> float | None:
        states = run(engine.backend, wrong)
        finished = len(states) == len(right) == len(expected)
        return relative_error(states[-1], right[-1]) if finished else None

    words = control = None
    told_apart = True
    for wrong, asked in request.controls(engine.config):
        if wrong.exceeds_gate:
            control = distance(asked, expected)
            told_apart &= control is None or control > gate
        else:
            words = distance(asked, actual)
            told_apart &= words is None or words > ROUNDING
    passed = sound and final is not None and final <= gate and told_apart
    told = {
        "scene": request.name,
        "layout": request.layout.key,
        "passed": passed,
        "sound": sound,
        "gate": gate,
        "final_relative_error": final,
        "rounded_relative_error": rounded,
        "step_relative_errors": errors,
        "psnr_db": psnr,
        "ssim": likeness,
        "words_effect": words,
        "control_relative_error": control,
    }
    return told, pair
