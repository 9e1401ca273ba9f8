"""The calling convention of diffusers' video pipelines, over an engine.

What it makes is what `Engine.generate` makes, bit for bit. Numbers that are not given are the
engine's own defaults, not those of another model.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from lumosx_rt.diffusers.refused import INSTEAD_OF_PIPELINES, Refusing, Transformer
from lumosx_rt.reference.errors import BadInput, Unsupported
from lumosx_rt.reference.numbers import whole_number
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.scene import Reference, Scene, Subject
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.runtime.engine import Engine, load
from lumosx_rt.runtime.video import Video

OUTPUTS = ("np", "pt", "pil", "latent")
MOST_VIDEOS = 64
_BIND = "pictures are bound to words: subjects=[rt.Subject([...])], objects, background"

log = logging.getLogger("lumosx_rt")


@dataclass
class LumosXPipelineOutput(BaseOutput):
    """What a call returns: one video for each prompt and seed, prompt by prompt.

    frames: "np" float32 [videos, frames, height, width, 3] from 0 to 1; "pt" the same with
    channels behind frames; "pil" a list of lists of images; "latent" the latents [videos, channels,
    frames, rows, columns].
    """

    frames: Any


class LumosXPipeline(Refusing):
    """An engine behind the interface of `diffusers.WanPipeline`, with pictures bound to words."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _optional_components: list[str] = []
    _instead = INSTEAD_OF_PIPELINES

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.transformer = Transformer(engine.config)
        self._guidance_scale = float(engine.manifest.defaults["guidance"])
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False
        self._bar: dict[str, Any] = {}

    @classmethod
    def from_engine(cls, engine: Engine | str | Path, **options: Any) -> "LumosXPipeline":
        """Make a pipeline of an engine, or of its folder; options as in `rt.load`."""
        return cls(engine if isinstance(engine, Engine) else load(engine, **options))

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "LumosXPipeline":
        """Make a pipeline of an engine's folder; options as in `rt.load`.

        Raises LumosXError for a checkpoint, which has to be built first, and for options of
        diffusers that `lumosx-rt build` decides.
        """
        decided = {"torch_dtype": "--precision", "device_map": "--device", "variant": "--precision"}
        for name in decided.keys() & {name for name, value in options.items() if value is not None}:
            raise Unsupported(f"{name}: decided when an engine is built, `{decided[name]}`")
        known = {k: v for k, v in options.items() if k not in decided}
        return cls.from_engine(path, **known)

    def __repr__(self) -> str:
        return f"LumosXPipeline of {self.engine!r}"

    # -- what a call was given, while it runs ---------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked, by `_interrupt = True`, to stop and show what there is."""
        return self._interrupt

    @property
    def attention_kwargs(self) -> None:
        return None

    # -- its parts ------------------------------------------------------------------------------

    @property
    def text_encoder(self) -> Any:
        return self.engine.text_encoder.model

    @property
    def tokenizer(self) -> Any:
        return self.engine.text_encoder.tokenizer

    @property
    def vae(self) -> Any:
        return self.engine.vae.model

    @property
    def device(self) -> torch.device:
        """Where its encoders are, and what it returns."""
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "LumosXPipeline":
        """Return the pipeline for the device that its tensors are on; refuse any other, and dtypes.

        An engine runs where it was built for and loaded: `rt.load(provider=...)`.
        """
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.dtype) or torch.device(given) != self.device:
                raise Unsupported(
                    f"to: got {given}; an engine is compiled: choose its device and precision by "
                    "`lumosx-rt build`, and `rt.load(provider=...)`"
                )
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Take options of tqdm for the bar, like disable=True."""
        self._bar = options

    # -- a call ---------------------------------------------------------------------------------

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        *,
        subjects: Sequence[Subject] = (),
        objects: Sequence[Reference] = (),
        background: Reference | None = None,
        scene: Scene | str | Path | None = None,
        shift: float | None = None,
        **unknown: Any,
    ) -> LumosXPipelineOutput | tuple[Any]:
        """Make videos. Arguments, their order and the result are those of `WanPipeline`.

        What is not given is the engine's default. subjects, objects, background: pictures bound to
        words of the prompt. scene: all of these in one, in place of a prompt. generator: one for
        each video, or one whose seed is the first of several; new ones on the CPU, which count as
        used afterwards. latents: the noise to start from. callback_on_step_end: called as (pipe,
        step, time, tensors) after every step; it may return other latents, and stop the rest by
        `pipe._interrupt = True`. Raises LumosXError.
        """
        self._refuse(
            attention_kwargs=attention_kwargs,
            guidance_scale_2=guidance_scale_2,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            **unknown,
        )
        if output_type not in OUTPUTS:
            raise BadInput(f"output_type: got {output_type!r}, accepted are {', '.join(OUTPUTS)}")
        if max_sequence_length not in (512, self.engine.config.text_len):  # 512: not said
            raise Unsupported(
                f"max_sequence_length: got {max_sequence_length}, this engine was built for "
                f"{self.engine.config.text_len}"
            )
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        names = list(callback_on_step_end_tensor_inputs)
        if foreign := [name for name in names if name not in self._callback_tensor_inputs]:
            raise BadInput(
                f"callback_on_step_end_tensor_inputs: got {foreign}, accepted are "
                f"{self._callback_tensor_inputs}"
            )
        scenes = _scenes(prompt, scene, subjects, objects, background)
        count = whole_number(num_videos_per_prompt or 1, "num_videos_per_prompt", 1, MOST_VIDEOS)
        seeds = _seeds(generator, len(scenes), count)
        settings: dict[str, Any] = {
            "size": self._size(num_frames, height, width),
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "shift": shift,
        }
        negative = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt]
        if len(negative) not in (1, len(scenes)):
            raise BadInput(f"negative_prompt: got {len(negative)}, accepted are 1 or {len(scenes)}")
        valid = [
            self.engine.check(one, **settings, seeds=own, negative_prompt=text)
            for one, own, text in zip(
                scenes, seeds, negative * (len(scenes) // len(negative)), strict=True
            )
        ]
        for one in _list(generator):
            torch.rand((), generator=one)  # it counts as used
        self._interrupt = False
        made: list[Any] = []
        for i, checked in enumerate(valid):
            request = self.engine.prepare(checked)
            start = None if latents is None else latents[i * count : (i + 1) * count]
            last = self._sample(request, start, callback_on_step_end, names)
            made.append(last if output_type == "latent" else self.engine.decode(request, last))
        frames = torch.cat(made) if output_type == "latent" else _output(sum(made, []), output_type)
        return LumosXPipelineOutput(frames=frames) if return_dict else (frames,)

    def _refuse(self, **given: Any) -> None:
        instead = {
            "prompt_embeds": "give the prompt itself: its words are bound to pictures",
            "negative_prompt_embeds": "give negative_prompt itself",
            "attention_kwargs": "an engine is compiled",
            "guidance_scale_2": "there is one transformer",
            "reference_images": _BIND,
            "image": _BIND,
        }
        for name, value in given.items():
            if name not in instead:
                raise BadInput(f"{name}: no such argument")
            if value is not None:
                raise Unsupported(f"{name}: {instead[name]}")

    def _size(self, frames: int | None, height: int | None, width: int | None) -> VideoSize:
        own = self.engine.manifest.defaults
        if (
            frames is not None
            and (count := whole_number(frames, "num_frames", 1, 1 << 20)) % 4 != 1
        ):
            frames = max(count // 4 * 4 + 1, 1)
            log.warning("num_frames: %d is not 1 + 4k; %d are made", count, frames)
        given = {"frames": frames, "height": height, "width": width}
        return VideoSize(**{name: own[name] if n is None else n for name, n in given.items()})

    def _sample(
        self,
        request: Request,
        start: Tensor | None,
        callback: Callable[..., dict[str, Tensor] | None] | None,
        names: Sequence[str],
    ) -> Tensor:
        """Return the latents [videos, channels, frames, rows, columns] after the last step."""
        from tqdm.auto import tqdm

        times = torch.from_numpy(request.schedule.times)
        self._guidance_scale, self._num_timesteps = request.guidance, len(times)
        binding: Any = request.binding

        def edit(state: SamplerState) -> Tensor:
            if state.step == 0:
                return state.latents if start is None else _noise(start, state.latents)
            self._current_timestep = times[state.step - 1]
            if callback is None:
                return state.latents
            tensors = {"latents": state.latents}
            tensors["prompt_embeds"] = binding.text[None]
            tensors["negative_prompt_embeds"] = binding.null_text[None]
            shown = {name: tensors[name] for name in names}
            changed = callback(self, state.step - 1, self._current_timestep, shown) or {}
            for name, tensor in changed.items():
                if name != "latents" and tensor is not shown.get(name):
                    raise Unsupported(f"callback: {name} is bound before the first step and stays")
            return _noise(changed.get("latents", state.latents), state.latents)

        latents = torch.empty(0)
        with tqdm(total=len(times), **self._bar) as bar:
            for state in self.engine.sample(request, edit):
                latents = state.latents
                bar.update(state.step - bar.n)
                if self._interrupt:
                    break
        self._current_timestep = None
        return latents


def _scenes(
    prompt: str | list[str] | None,
    scene: Scene | str | Path | None,
    subjects: Sequence[Subject],
    objects: Sequence[Reference],
    background: Reference | None,
) -> list[Scene]:
    """Return one scene for each prompt. Raises LumosXError."""
    parts = {"subjects": subjects, "objects": objects, "background": background}
    if scene is not None:
        if prompt is not None or any(part for part in parts.values()):
            raise BadInput("scene: it has a caption and pictures already; give it alone")
        return [scene if isinstance(scene, Scene) else Scene.load(scene)]
    if prompt is None:
        raise BadInput("prompt: give a prompt, or a scene")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not prompts:
        raise BadInput("prompt: an empty list; give one at least")
    return [Scene.from_prompt(one, **parts) for one in prompts]


def _seeds(given: Any, prompts: int, count: int) -> list[tuple[int, ...]]:
    """Return the seeds of each prompt's videos."""
    videos = prompts * count
    generators = _list(given)
    for generator in generators:
        _check_generator(generator)
    if len(generators) not in (0, 1, videos):
        raise BadInput(f"generator: got {len(generators)}, accepted are one, or {videos}")
    own = [generator.initial_seed() for generator in generators]
    own = own or [int(torch.randint(1 << 31, ()))]
    seeds = own if len(own) == videos else [own[0] + i for i in range(videos)]
    return [tuple(seeds[i * count : (i + 1) * count]) for i in range(prompts)]


def _list(generators: Any) -> list[Any]:
    if generators is None:
        return []
    return generators if isinstance(generators, list) else [generators]


def _check_generator(generator: Any) -> None:
    if not isinstance(generator, torch.Generator):
        raise BadInput(f"generator: got {type(generator).__name__}, accepted is a torch.Generator")
    if generator.device.type != "cpu":
        raise Unsupported(
            "generator: noise is drawn on the CPU, so that it is the same everywhere; give "
            "torch.Generator().manual_seed(...)"
        )
    new = torch.Generator().manual_seed(generator.initial_seed())
    if not torch.equal(new.get_state(), generator.get_state()):
        raise BadInput(
            "generator: it was used, and only its seed counts here; give a new "
            "torch.Generator().manual_seed(...) for every call"
        )


def _noise(given: Any, like: Tensor) -> Tensor:
    """Return latents of the shape that a request has. Raises LumosXError."""
    if not isinstance(given, Tensor) or given.shape != like.shape:
        found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise BadInput(f"latents: got {found}, accepted are {list(like.shape)}")
    return given.to(like)


def _output(videos: list[Video], kind: str) -> Any:
    if kind == "pil":
        return [video.pil() for video in videos]
    frames = _UNIT[np.stack([video.frames for video in videos])]
    return frames if kind == "np" else torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()


def _unit() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return float32 0 to 1 for each byte: times 255 and cut off, as exporters do, it is back."""
    levels = np.arange(256)
    values = (levels / 255).astype(np.float32)
    short = (values * np.float32(255)).astype(np.uint8) != levels
    return np.where(short, np.nextafter(values, np.float32(1)), values).astype(np.float32)


_UNIT = _unit()
