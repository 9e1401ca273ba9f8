"""Is it the same video? An engine against the PyTorch reference, from the same noise."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lumosx_rt.artifact import certificate
from lumosx_rt.artifact.manifest import CALIBRATION, GRAPH, PICTURE
from lumosx_rt.artifact.report import write_report
from lumosx_rt.artifact.source import source_of
from lumosx_rt.backends.eager.run import EagerBackend
from lumosx_rt.backends.eager.simulated import SimulatedBackend
from lumosx_rt.backends.fp8_layers import layer_parity
from lumosx_rt.backends.gates import FORWARD_GATES, GATES, ROUNDED_GATE, ROUNDING
from lumosx_rt.calibration.calibration_file import Calibration, read_calibration
from lumosx_rt.export.program import model_inputs
from lumosx_rt.parity.comparison import comparison_picture
from lumosx_rt.parity.quirks import check_quirks
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.metrics import peak_signal_to_noise, relative_error
from lumosx_rt.reference.sampling import denoise as runtime
from lumosx_rt.reference.sampling.inputs import Backend, Inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.world.judge import ssim
from lumosx_rt.runtime.engine import Engine

Frames = NDArray[np.uint8]

# One forward pass each: no references, one group, unequal groups in two streams, several seeds.
FORWARD_CASES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("2x8x14+0+-",), 1),
    (("2x8x14+1+2",), 1),
    (("2x8x14+0+3",), 2),
    (("3x4x9+1+1.3", "3x4x9+2+3"), 2),
)


def forward_parity(
    model: LumosX,
    backend: Backend | Callable[[], Backend],
    precision: str = "fp32",
    document: Calibration | None = None,
) -> list[dict[str, Any]]:
    """One forward pass of a backend against the reference on small awkward layouts.

    model: the reference in float32. backend: or what makes it, called when nothing but the model is
    in memory any more. Each result has its `relative_error` and the `gate` it must not exceed: of
    `FORWARD_GATES`, or by what the model itself errs in that precision (`ROUNDED_GATE`). document:
    the scales of "fp8".
    """
    calls, gates = [_forward_case(model, i) for i in range(len(FORWARD_CASES))], []
    rounded = _rounded(model, precision, document)
    for bound, latents, moment, expected in calls:
        gates.append(
            FORWARD_GATES[precision]
            if rounded is None
            else ROUNDED_GATE * relative_error(rounded.bind(bound)(latents, moment), expected)
        )
    del rounded
    made = backend() if callable(backend) else backend
    results = []
    for (keys, seeds), call, gate in zip(FORWARD_CASES, calls, gates, strict=True):
        bound, latents, moment, expected = call
        error = relative_error(made.bind(bound)(latents, moment), expected)
        results.append(
            {
                "layout": " and ".join(keys),
                "streams": len(keys),
                "seeds": seeds,
                "relative_error": error,
                "gate": gate,
            }
        )
    return results


def _forward_case(model: LumosX, index: int) -> tuple[Inputs, Tensor, int, Tensor]:
    """A case's inputs, latents and time, and what the reference makes of them."""
    keys, seeds = FORWARD_CASES[index]
    layouts = [SceneLayout.from_key(key) for key in keys]
    latents, time, text, references, template, structure = model_inputs(
        model.config, layouts, seeds, seed=index
    )
    template = 8 * template  # loud words, so that a lost tile shows even in random weights
    bound = Inputs(text, references, template, structure, tuple(latents.shape))
    moment = int(time[0])  # streams of a call share it
    return bound, latents, moment, EagerBackend(model).bind(bound)(latents, moment).clone()


def _rounded(model: LumosX, precision: str, document: Calibration | None) -> Backend | None:
    """The model in a precision that has no gate of its own: the yardstick there."""
    if precision in GATES:
        return None
    if document is not None:
        return SimulatedBackend(model, document)
    return EagerBackend(recast(model, torch.bfloat16))


def verify(
    engine: Engine,
    scenes: Sequence[Scene],
    *,
    checkpoint: str | Path | None = None,
    size: VideoSize | None = None,
    steps: int = 8,
    seeds: Sequence[int] = (0,),
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> dict[str, Any]:
    """Sample scenes with engine and reference from the same noise, and write the engine's report.

    checkpoint: the weights the engine was built from, where they are not found by themselves.
    progress: told (what, steps done, steps in all). Returns the report's section: `passed`, the
    (largest) `gate`, what undoing each quirk of SPEC would change (`check_quirks`), and per scene
    its own gate, the error of the latents after every step, the PSNR and SSIM of the decoded
    frames, whether they are finite and not flat, and the errors of two engine runs that are wrong
    on purpose (`compare`). Of an engine in FP8 also, under `fp8`, what of it is quantized, and its
    graph looked into, product by product (`layer_parity`). The picture is of the worst scene.
    Raises LumosXError where it cannot compare.
    """
    if not scenes:
        raise LumosXError("verify: needs at least one scene")
    requests = [engine.prepare(scene, size=size, steps=steps, seeds=seeds) for scene in scenes]
    model = source_of(engine.manifest, checkpoint).load()
    reference = EagerBackend(model)
    precision = engine.manifest.precision
    document = read_calibration(engine.folder / CALIBRATION) if precision == "fp8" else None
    gate = _rounded(model, precision, document) or GATES[precision]
    results: list[dict[str, Any]] = []
    worst: tuple[dict[str, Any], Frames, Frames] | None = None
    total = 2 * steps * len(requests)
    for request in requests:
        before = 2 * steps * len(results)

        def told(what: str, done: int, before: int = before) -> None:
            progress(what, before + done + steps * what.endswith("engine"), total)

        result, pair = compare(engine, reference, request, gate, told)
        results.append(result)
        if pair is not None and (worst is None or _badness(result) > _badness(worst[0])):
            worst = (result, *pair)
    fp8 = {} if document is None else {"fp8": _fp8_check(engine, model, document)}
    widest = max(requests, key=lambda request: request.layout.references)
    allowed = _rounded(model, precision, document) or FORWARD_GATES[precision]
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
    """The final error over what is allowed."""
    error = result["final_relative_error"]
    return float("inf") if error is None else float(error / result["gate"])


def _fp8_check(engine: Engine, model: LumosX, document: Calibration) -> dict[str, Any]:
    """What FP8 is in an engine, and whether its graph, where there is one, is what it says."""
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
    """One request on engine and reference, free-running from the same noise, and two controls; and
    the frames that both made of the first seed, uint8 [frames, height, width, 3].

    gate: the largest error of the final latents, or what errs itself, of which `ROUNDED_GATE` times
    as much is allowed.
    Controls are engine runs that are wrong on purpose: without words (which must differ from the
    engine's own, or words do nothing) and without relations (whose error must exceed the gate).
    """

    def run(backend: Backend, asked: Request, what: str = "") -> list[Tensor]:
        """Latents after every step; fewer than all where they stopped being finite."""
        states = []
        try:
            for state in runtime.denoise(backend, asked, engine.config.head_dim):
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
        sound = not runtime.is_flat(frames)

    def distance(wrong: Request, right: list[Tensor]) -> float | None:
        states = run(engine.backend, wrong)
        finished = len(states) == len(right) == len(expected)
        return relative_error(states[-1], right[-1]) if finished else None

    bound = engine.config.mcam_ratio and request.binding.template.any()
    words = distance(request.without_words(), actual) if bound else None
    related = any(size > 1 for size in request.layout.subjects)
    control = distance(request.unrelated(), expected) if related else None
    passed = (
        sound
        and final is not None
        and final <= gate
        and (not bound or words is None or words > ROUNDING)
        and (not related or control is None or control > gate)
    )
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


def builtin_scenes() -> list[Scene]:
    """Three drawn scenes: no references, one subject, unequal subjects with a background."""
    from PIL import Image

    def picture(hue: int) -> Image.Image:
        ramp = Image.linear_gradient("L").resize((96, 96))
        plain = Image.new("L", ramp.size, 200)
        return Image.merge("HSV", (Image.new("L", ramp.size, hue), plain, ramp)).convert("RGB")

    words = ("woman", "red hat", "blue coat", "man", "green scarf", "garden")
    cards = {word: Reference(word, picture(40 * i)) for i, word in enumerate(words)}
    woman = Subject((cards["woman"], cards["red hat"], cards["blue coat"]))
    man = Subject((cards["man"], cards["green scarf"]))
    alone = "A woman with a red hat and a blue coat waves."
    both = "In a garden, a woman with a red hat and a blue coat meets a man in a green scarf."
    return [
        Scene("no-references", "A quiet lake at dawn, seen from above."),
        Scene("one-subject", alone, subjects=(woman,)),
        Scene("two-subjects", both, background=cards["garden"], subjects=(woman, man)),
    ]
