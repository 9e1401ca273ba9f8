"""Which mechanism of LumosX carries how much of the binding, in the drawn world.

    python -m benchmarks.quality.ablation out/ablation -o benchmarks/results/ablation.json

With the encoders of checkpoints/tiny a transformer learns single people; from there every variant
is trained on the same stills of pairs for the same number of steps, and judged on the held-out
scenes of two people, as stills. What is finished is found again; once the first phase is,
several copies may run at once with different --variants.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.records import write
from lumosx_rt.bench.common.makers import MakeClip
from lumosx_rt.bench.quality.suite import Result, identity_of, run_suite
from lumosx_rt.bench.quality.table import compare, summarise
from lumosx_rt.reference.backbones.loading import load_transformer
from lumosx_rt.reference.encoders.umt5 import load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import load_vae
from lumosx_rt.reference.mechanisms.lumosx.binding import Binding, bind_scene
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.denoise import denoise
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.training.pipeline import make_bundle
from lumosx_rt.reference.world.scene_lists import BINDING
from lumosx_rt.reference.world.scenes import scene_of
from lumosx_rt.reference.world.story import Story
from lumosx_rt.reference.world.train.captions import TEXT_LEN
from lumosx_rt.reference.world.train.course import STILL, TINY, Phase

STEPS, SHIFT = 12, 3.0
PAIRS = Phase("pairs", {2: 1400}, 1200, still=True, streams=8, seeds=2)


@dataclass(frozen=True)
class Variant:
    """What is switched off, in training and in sampling alike."""

    positions: bool = True
    visibility: bool = True
    words: bool = True
    relations: str = "full"
    ratio: float = 0.5

    @property
    def changes(self) -> dict[str, Any]:
        """Of the recipe, strength aside."""
        return {
            "relational_positions": self.positions,
            "relational_visibility": self.visibility,
            "words": self.words,
            "relations": self.relations,
        }


VARIANTS = {
    "full": Variant(),
    "no relational positions": Variant(positions=False),
    "no relational visibility": Variant(visibility=False),
    "no words": Variant(words=False),
    "none": Variant(words=False, relations="lone"),
    "none, interleaved": Variant(words=False, relations="lone-interleaved"),
    "ratio 0.1": Variant(ratio=0.1),
    "ratio 1.0": Variant(ratio=1.0),
}


def request_of(request: Request, variant: Variant) -> Request:
    """A request as a variant was trained: its layout, and the order of its references."""
    layout, binding = request.layout, request.binding
    assert isinstance(layout, SceneLayout) and isinstance(binding, Binding)
    order = list(range(layout.references))
    if variant.relations == "lone-interleaved":
        edges = np.cumsum([layout.lone, *layout.subjects]).tolist()
        groups = [range(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        ranks = (r for rank in zip_longest(*groups) for r in rank if r is not None)
        order = [*range(layout.lone), *ranks]
    if variant.relations != "full":
        layout = replace(layout, lone=layout.references, subjects=())
    layout = replace(
        layout,
        relational_positions=variant.positions,
        relational_visibility=variant.visibility,
    )
    binding = replace(
        binding,
        template=binding.template[order] * float(variant.words),
        references=binding.references[order],
    )
    return replace(request, layout=layout, binding=binding)


def maker(components: Path, weights: Path, variant: Variant) -> MakeClip:
    text_encoder, vae = load_text_encoder(components, TEXT_LEN), load_vae(components)
    model = load_transformer(weights)
    backend = EagerBackend(model)

    def make_clip(told: Story) -> NDArray[np.uint8]:
        layout, binding = bind_scene(scene_of(told), STILL, text_encoder, vae)
        plain = Request(told.name, STILL, layout, binding, (told.seed,), STEPS, SHIFT, 1.0)
        *_, last = denoise(backend, request_of(plain, variant), model.config.head_dim)
        return vae.decode_frames_uint8(last.latents)

    return make_clip


def tell(part: str, done: int, steps: int, metrics: Mapping[str, float] | None = None, /) -> None:
    if done % 100 == 0 or done == steps:
        print(f"{part} {done} of {steps} {metrics or ''}", flush=True)


def tell_scenes(
    scene: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /
) -> None:
    tell("scenes", done, total)


def run(components: Path, folder: Path, name: str) -> list[Result]:
    """Train and judge one variant, or find it again."""
    variant = VARIANTS[name]
    place, latents = folder / name.replace(" ", "-").replace(",", ""), folder / "latents"
    single = TINY.phases[0].recipe(components, None)
    start = make_bundle(single, folder / single.stages[0].name, latents, progress=tell)
    plain = PAIRS.recipe(components, start, **variant.changes)
    recipe = replace(plain, model=replace(plain.model, mcam_ratio=variant.ratio))
    print(f"variant: {name}", flush=True)
    bundle = make_bundle(recipe, place, latents, report=print, progress=tell)
    stories = [told for told in BINDING.stories if len(told.people) == 2]
    what = {"variant": name, "recipe": recipe.describe()}
    identity = identity_of("ablation", BINDING, json.loads(json.dumps(what)))
    return run_suite(
        maker(components, bundle, variant),
        stories,
        place / "judged",
        identity,
        tell_scenes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where runs are kept")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/ablation.json"))
    parser.add_argument("--components", type=Path, default=Path("checkpoints/tiny"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args(arguments)
    results = {name: run(given.components, given.folder, name) for name in given.variants}
    record: dict[str, Any] = {
        "what": "the drawn world, held-out stills of two people",
        "training": {"steps": PAIRS.steps, "streams": PAIRS.streams, "seeds": PAIRS.seeds},
        "torch": torch.__version__,
        "variants": {name: summarise(found) for name, found in results.items()},
    }
    if "full" in results:
        record["full minus"] = {
            name: compare(results["full"], found)
            for name, found in results.items()
            if name != "full"
        }
    write(record, given.out)
    print(given.out)


if __name__ == "__main__":
    main()
