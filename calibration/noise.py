"""A calibration without prompts: what a model with random weights is given, to be built in FP8.

Operands are observed on noise, so scales fit the weights and mean nothing for videos; no site is
chosen over another. Engines of real checkpoints are built with `lumosx-rt calibrate`'s result.
"""

from dataclasses import asdict

import torch

from lumosx_rt.calibration.calibration_file import Calibration, Site, scales_of
from lumosx_rt.calibration.observe import modelopt_version, observe, weight_amax
from lumosx_rt.calibration.samples import Sampling
from lumosx_rt.calibration.scheme import Scheme
from lumosx_rt.calibration.sites import flops_of, sites_of, why_not
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.binding import Binding
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.scenes.video_size import VideoSize

LAYOUT = SceneLayout.from_key("2x2x3+1+2.1")
SAMPLING = Sampling(VideoSize(5, 32, 48), steps=2, shift=3.0, guidance=1.0, bins=1)


def noise_calibration(model: LumosX, sha256: str) -> Calibration:
    """All sites that can run in FP8 do; sha256: of the weights."""
    config = model.config
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    text = noise(2, config.text_len, config.text_dim)
    template = noise(LAYOUT.references, config.text_len).sign()
    references = noise(LAYOUT.references, config.in_dim, 2 * LAYOUT.height, 2 * LAYOUT.width)
    binding = Binding(text[0], text[1], template, references)
    size, how = SAMPLING.size, (SAMPLING.steps, SAMPLING.shift, SAMPLING.guidance)
    request = Request("noise", size, LAYOUT, binding, (0,), *how)
    ranges, weights = observe(model, request, SAMPLING), weight_amax(model)
    scheme, flops = Scheme(), flops_of(config, [LAYOUT])
    return Calibration(
        model=asdict(config),
        checkpoint={"sha256": sha256},
        scenes={"name": "noise", "sha256": "0" * 64, "prompts": [], "sensitivity": []},
        sampling={**asdict(SAMPLING.size), "steps": SAMPLING.steps, "shift": SAMPLING.shift},
        bins=SAMPLING.binned_times,
        precision="fp32",
        versions={"torch": torch.__version__, "nvidia-modelopt": modelopt_version()},
        scheme=asdict(scheme),
        budget=0.0,
        measured={},
        sites={
            site: Site(
                amax=ranges[site],
                scales=scales_of(site, ranges[site], scheme),
                weight_amax=weights.get(site),
                flops=flops[site],
                sqnr=[],
                velocity_sqnr=[],
                kept=why_not(site, config),
            )
            for site in sites_of(config)
        },
    )
