"""A small model with sizes that 8-bit products take, bound scenes of noise, and their scales."""

from functools import cache

import torch

from lumosx_rt.calibration.calibration_file import Calibration, Site, scales_of
from lumosx_rt.calibration.observe import merged, observe, weight_amax
from lumosx_rt.calibration.samples import Sampling
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.calibration.sites import sites_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.binding import Binding
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.video_size import VideoSize

CONFIG = LumosXConfig(dim=32, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=12)
SAMPLING = Sampling(VideoSize(5, 32, 48), steps=4, shift=3.0, guidance=1.0, bins=2)
KEYS = ("2x2x3+1+2.1", "2x2x3+0+3", "2x2x3+0+-")


@cache
def shared_model() -> LumosX:
    """The toy model; whoever changes it takes `model`."""
    return model()


def model(config: LumosXConfig = CONFIG) -> LumosX:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = LumosX(config).eval().requires_grad_(False)
        for name, weight in made.named_parameters():
            if name.endswith(("q.weight", "k.weight", "k.bias")):
                weight.mul_(4)  # attention that chooses, and keys that share a direction
    return made


def example(number: int) -> Request:
    layout = SceneLayout.from_key(KEYS[number % len(KEYS)])
    draw = torch.Generator().manual_seed(number)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    text = noise(2, CONFIG.text_len, CONFIG.text_dim)
    template = noise(layout.references, CONFIG.text_len).sign()
    references = noise(layout.references, CONFIG.in_dim, 4, 6)
    binding = Binding(*text, template, references)
    size, how = SAMPLING.size, (SAMPLING.steps, SAMPLING.shift, SAMPLING.guidance)
    return Request(f"toy{number}", size, layout, binding, (number,), *how)


@cache
def calibration(scheme: Scheme = Scheme()) -> Calibration:  # noqa: B008  (frozen)
    """What calibrating the toy model gives, all sites in FP8."""
    ranges = merged([observe(shared_model(), example(i), SAMPLING) for i in range(3)])
    weights = weight_amax(shared_model())
    measured = {"flops": 1, "sqnr": [30.0, 30.0], "velocity_sqnr": [40.0, 40.0], "kept": None}
    size = SAMPLING.size
    return Calibration(
        model=vars(CONFIG).copy(),
        checkpoint={"sha256": "0" * 64},
        scenes={"name": "toy", "sha256": "1" * 64, "prompts": [], "sensitivity": []},
        sampling={"frames": size.frames, "height": size.height, "width": size.width, "steps": 4},
        bins=SAMPLING.binned_times,
        precision="fp32",
        versions={},
        scheme=vars(scheme).copy(),
        budget=20.0,
        measured={},
        sites={
            s: Site(ranges[s], scales_of(s, ranges[s], scheme), weights.get(s), **measured)
            for s in sites_of(CONFIG)
        },
    )
