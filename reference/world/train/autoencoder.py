"""The drawn world's VAE: a small AutoencoderKLWan, trained on its pictures, then on its clips.

Pictures come first, because they are fast: for one frame a causal convolution in time is its
last slice, a convolution in the plane. A network of pictures then becomes one of clips whose
latent frames stand still, and learns to move from there. Kernels are trained by Muon as matrices,
everything else by AdamW; latents get noise while training, so that small errors of sampling do no
harm, and a penalty keeps them near unit size.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lumosx_rt.reference.encoders.single_frame import planar
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.world.train.pictures import Pictures

LATENT_NOISE = 0.1
SIZE_PENALTY = 1e-4


def new_autoencoder(seed: int = 0) -> Any:
    """An untrained AutoencoderKLWan, 4.1 million weights, that shows a picture as a still clip."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        build: Any = AutoencoderKLWan
        zeros, ones = [0.0] * 16, [1.0] * 16
        model = build(
            base_dim=12,
            dim_mult=[1, 2, 4, 8],
            num_res_blocks=1,
            latents_mean=zeros,
            latents_std=ones,
        )
        for module in model.modules():
            kernel = getattr(module, "weight", None)
            if kernel is not None and kernel.dim() == 5 and kernel.shape[2] == 3:
                kernel[:, :, :2] = 0  # the present frame alone
        for block in (*model.encoder.down_blocks, *model.decoder.up_blocks):
            resample = getattr(block, "upsamplers", None)
            _repeat_in_time(resample[0] if resample else block)
        half = model.config.z_dim
        model.quant_conv.weight[half:] = 0
        model.quant_conv.bias[half:] = 2 * math.log(LATENT_NOISE)
    return model


def _repeat_in_time(resample: Any) -> None:
    """Make a change of frame rate skip, or repeat, frames."""
    conv = getattr(resample, "time_conv", None)
    if conv is None:
        return
    inputs, outputs = conv.in_channels, conv.out_channels
    eye = torch.eye(inputs).repeat(outputs // inputs, 1)
    conv.weight.zero_()
    conv.weight[:, :, -1, 0, 0] = eye
    conv.bias.zero_()


def reconstruct(model: Any, clips: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Clips [batch, 3, frames, rows, columns] encoded and decoded, with gradients, and latents."""
    latents = model._encode(clips)[:, : model.config.z_dim]
    noisy = latents + noise * torch.randn_like(latents)
    model.clear_cache()
    pixels, decoder = [], model.decoder
    x = model.post_quant_conv(noisy)
    for frame in range(x.shape[2]):
        model._conv_idx = [0]
        pixels.append(
            decoder(
                x[:, :, frame : frame + 1],
                feat_cache=model._feat_map,
                feat_idx=model._conv_idx,
                first_chunk=frame == 0,
            )
        )
    model.clear_cache()
    return torch.cat(pixels, 2), latents


@dataclass(frozen=True)
class Lesson:
    """What to learn from, and for how long. Clips change nothing about pictures."""

    shown: Literal["pictures", "clips"]
    steps: int
    learning_rate: float = 3e-3
    seed: int = 0
    pool: tuple[int, int] = (800, 6000)
    """Clips and pictures to draw from."""
    batch: tuple[int, int] = (16, 2)
    """Pictures, or clips, of a step."""
    save_every: int = 100

    def rate(self, step: int) -> float:
        """The learning rate: 100 steps up, and the last third down to zero."""
        rising, falling = (step + 1) / 100, (self.steps - step) / (0.33 * self.steps)
        return self.learning_rate * min(1.0, rising, falling)


def train_autoencoder(
    model: Any,
    lesson: Lesson,
    file: Path,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> None:
    """Train in place, from the state in `file` if there is one; `save_every` steps renew it.

    `progress` is called with (step, metrics) after every step. A resumed run equals an
    uninterrupted one.
    """
    pictures = Pictures(lesson.seed, *lesson.pool)
    still = lesson.shown == "pictures"
    draw, count = pictures.images if still else pictures.moving, lesson.batch[not still]
    trained = Trained(model, lesson)
    if file.is_file():
        trained.load(file)
    for step in range(trained.step, lesson.steps):
        torch.manual_seed(lesson.seed << 32 | step)
        batch = draw(step, count)
        with torch.autocast("cpu", torch.bfloat16), planar(model) if still else nullcontext():
            pixels, latents = reconstruct(model, batch, LATENT_NOISE)
        error = pixels.float() - batch
        loss = error.abs().mean() + error.square().mean()
        (loss + SIZE_PENALTY * latents.float().square().mean()).backward()
        trained.change(lesson.rate(step))
        decibels = -10 * math.log10(max(float(error.detach().square().mean()) / 4, 1e-12))
        progress(step, {"loss": float(loss.detach()), "psnr": decibels})
        if trained.step % lesson.save_every == 0 or trained.step == lesson.steps:
            trained.save(file)


class Trained:
    """All that a step changes: Muon for inner kernels, seen as matrices; AdamW for the rest.

    Clips train what pictures never use: the past slices of kernels, and changes of frame rate.
    """

    def __init__(self, model: Any, lesson: Lesson) -> None:
        self.model, self.step = model, 0
        self.kernels, rest, self.past = [], [], []
        for name, parameter in model.named_parameters():
            in_time = parameter.dim() == 5 and parameter.shape[2] == 3
            rate = "time_conv" in name
            if lesson.shown == "clips":
                parameter.requires_grad_(in_time or rate)
                if in_time and not rate:
                    self.past.append(parameter)
            else:
                parameter.requires_grad_(not rate)
            if not parameter.requires_grad:
                continue
            outer = "quant_conv" in name or name.split(".")[1] in ("conv_in", "conv_out")
            if parameter.dim() < 4 or outer or parameter.numel() < 200:
                rest.append(parameter)
            else:
                matrix = nn.Parameter(parameter.data.view(parameter.shape[0], -1))
                self.kernels.append((matrix, parameter))
        self.parameters = [matrix for matrix, _ in self.kernels] + rest
        muon = torch.optim.Muon(
            self.parameters[: len(self.kernels)],
            lr=lesson.learning_rate,
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers: list[Any] = [muon, adamw]

    def change(self, rate: float) -> None:
        """One step by the gradients at hand, which are then forgotten."""
        for kernel in self.past:
            if kernel.grad is not None:
                kernel.grad[:, :, -1] = 0
        for matrix, kernel in self.kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.view_as(matrix)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.step += 1

    def save(self, file: Path) -> None:
        state = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for i, parameter in enumerate(self.parameters):
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    state[f"optimizer.{i}.{key}"] = value
        with replacing(file) as temporary:
            save_file(state, temporary, {"step": str(self.step)})

    @torch.no_grad()
    def load(self, file: Path) -> None:
        with safe_open(str(file), framework="pt") as found:
            self.step = int(found.metadata()["step"])
            for name in found.keys():
                part, _, key = name.partition(".")
                if part == "model":
                    self.model.get_parameter(key).copy_(found.get_tensor(name))
                    continue
                i, _, entry = key.partition(".")
                parameter = self.parameters[int(i)]
                optimizer = self.optimizers[int(i) >= len(self.kernels)]
                optimizer.state[parameter][entry] = found.get_tensor(name)
