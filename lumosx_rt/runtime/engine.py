"""An engine directory, loaded: scenes in, videos out."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, cast

from torch import Tensor

from lumosx_rt.artifact import certificate
from lumosx_rt.artifact.manifest import Manifest, check_files, read_manifest
from lumosx_rt.artifact.source import encoders_of
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.table import load_backend
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.checkpoints.bundle import Bundle
from lumosx_rt.reference.encoders.facts import EncoderFacts, encoder_facts
from lumosx_rt.reference.encoders.umt5 import TextEncoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.errors import BadInput, LumosXError, NotFinite, Unsupported, listing
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.mechanisms.mechanism import Layout
from lumosx_rt.reference.process import check_process
from lumosx_rt.reference.sampling.denoise import denoise_together
from lumosx_rt.reference.sampling.inputs import MAX_STREAMS, MECHANISMS, Backend, Inputs
from lumosx_rt.reference.sampling.memory_plan import MemoryPlan
from lumosx_rt.reference.sampling.request import Request, ValidRequest, check_sampling
from lumosx_rt.reference.sampling.schedules import RELEASED
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.sampling.solvers import Edit, SamplerState
from lumosx_rt.reference.scenes.prepared import prepare_scene
from lumosx_rt.reference.scenes.scene import Scene, scene_of
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT, check_text
from lumosx_rt.runtime import diagnosis, memory
from lumosx_rt.runtime.devices.encoders import text_encoder_on, vae_on
from lumosx_rt.runtime.devices.place import Devices, EncodersDevice
from lumosx_rt.runtime.devices.remembered import (
    REMEMBERED_BYTES,
    Remembered,
    RememberingTextEncoder,
)
from lumosx_rt.runtime.guards import Health, check_binding
from lumosx_rt.runtime.service import Service
from lumosx_rt.runtime.settings import SAMPLING, Settings, check_names
from lumosx_rt.runtime.streaming import Event, preview_of, shown
from lumosx_rt.runtime.video import Video, decode

log = logging.getLogger("lumosx_rt")


@checked
def load(
    path: str | Path,
    *,
    components: str | Path | None = None,
    provider: Provider = "auto",
    check_hashes: bool = True,
    trust: bool = False,
    unverified: bool = False,
    max_memory: str | int | None = None,
    max_device_memory: str | int | None = None,
    encoders_device: EncodersDevice = "auto",
    remember: str | int = REMEMBERED_BYTES,
    lossy: Lossy = EXACT,
) -> "Engine":
    """Load an engine directory.

    components: a folder with text encoder, tokenizer and VAE, where the engine has none of its own.
    check_hashes: compare every file's content with the manifest (sizes always are).
    trust: run compiled code (torch, tensorrt-rtx) that was not made on this machine; code can do
    whatever you can.
    unverified: take an engine whose last comparison with the reference failed; one that has none is
    taken with a warning (`certificate.NotVerified`).
    max_memory: what the process may hold, like "8GiB"; requests are adapted to it, or refused.
    max_device_memory: the same of a GPU's own memory, where the engine runs on one; what is free
    there now by default.
    encoders_device: where text encoder and VAE run, "cpu" or "cuda"; "auto" is with the backend.
    remember: for embeddings and latents kept between requests, at most 1/16 of max_memory; 0 is
    none.
    lossy: shortcuts over neighbouring steps; the video is another one then.
    Raises LumosXError for whatever does not fit.
    """
    folder = Path(os.path.abspath(path))
    limit = memory.parse_limit(max_memory, "max_memory")
    gpu_limit = memory.parse_limit(max_device_memory, "max_device_memory")
    if components is not None:
        components = Path(os.path.abspath(components))  # the program may change its folder
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=check_hashes)
    certificate.demand(folder, unverified=unverified)
    backend = load_backend(folder, manifest, provider, trust=trust, lossy=lossy)
    kept = memory.parse_bytes(remember) if remember else 0
    log.info("engine %s loaded: %s, %s", folder, manifest.backend, manifest.precision)
    return Engine(
        folder, manifest, backend, components, max_memory=limit, max_device_memory=gpu_limit,
        encoders_device=encoders_device, remember=kept, lossy=lossy,
    )  # fmt: skip


class Engine:
    """A compiled LumosX: `generate` makes videos, by `prepare`, `sample` and `decode`.

    Use it in a `with`, or `close` it, to free its memory early. Threads may share an engine: every
    request is its own, encoders take turns. A forked process has to load its own. To batch and
    overlap requests, use `serve`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        backend: Backend,
        components: str | Path | None = None,
        *,
        max_memory: int | None = None,
        max_device_memory: int | None = None,
        encoders_device: EncodersDevice = "auto",
        remember: int = REMEMBERED_BYTES,
        lossy: Lossy = EXACT,
    ) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend
        self.lossy = lossy
        self.mechanism = MECHANISMS[manifest.mechanism]
        self.config = LumosXConfig.from_dict(manifest.model)
        self.max_memory = max_memory
        self._held_bytes = memory.held_at_load()
        if max_memory is not None:
            # what may be remembered is set aside, so that plans stay as stated
            remember = min(remember, max_memory // 16)
            self._held_bytes += remember
        self.devices = Devices.of(backend, encoders_device)
        self._gpu_held_bytes = self.devices.held(manifest)
        self.max_device_memory = self.devices.limit(max_device_memory, self._gpu_held_bytes)
        self.health, self.remembered = Health(), Remembered(remember)
        self._components = components
        self._pid, self._closed = os.getpid(), False

    def __repr__(self) -> str:
        made = self.manifest
        state = ", closed" if self._closed else ""
        return f"Engine '{self.folder}': {made.mechanism}, {made.backend}, {made.precision}{state}"

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the backend, the encoders and what is remembered go; the engine is of no use then."""
        self._closed = True
        self.backend = cast(Backend, None)
        self.remembered = Remembered(0)
        for part in ("text_encoder", "vae"):
            self.__dict__.pop(part, None)  # as cached

    def _check_usable(self) -> None:
        check_process(self._pid, f"engine '{self.folder}'")
        if self._closed:
            raise LumosXError(f"engine '{self.folder}': it was closed; load it again")

    def generate(
        self,
        scene: Scene | str | Path,
        *,
        progress: Callable[[SamplerState], None] | bool = False,
        **settings: Unpack[Settings],
    ) -> list[Video]:
        """Make one video per seed. What is not said is the engine's default (`manifest.defaults`).

        scene: an `rt.Scene`, the path of a prompt folder or a scene.toml, or a prompt as plain
        text, with a space in it. progress: shown the state after every step; True draws a bar, in
        a terminal or a notebook. What of the scene is odd, or not read, is logged and in the
        videos' `warnings`. Raises LumosXError for scenes and sizes that do not fit, before any
        heavy work, and for output that is not finite or flat.
        """
        request = self.prepare(scene, **settings)
        _log_warnings(request)
        with shown(progress, request.name) as show:
            for state in self.sample(request):
                show(state)
        return self.decode(request, state.latents)

    def prepare(
        self, scene: Scene | str | Path | ValidRequest, **settings: Unpack[Settings]
    ) -> Request:
        """Check a scene and bind it: text and references encoded, all known but the noise.

        `warnings` of the request has what is odd, like a caption that the text encoder cuts.
        """
        self._check_usable()
        self.health.count("requests")
        try:
            request = self._prepared(scene, **settings)
            check_binding(request.name, request.binding)
        except NotFinite:
            self.health.count("non_finite")
            raise
        except LumosXError:
            self.health.count("refused")
            raise
        return request

    def _prepared(self, scene: Scene | str | Path | ValidRequest, **settings: Any) -> Request:
        valid = scene if isinstance(scene, ValidRequest) else self._valid(scene, **settings)
        binding = self.mechanism.bind(
            valid.scene, valid.layout, valid.size, self.text_encoder, self.vae,
            valid.negative_prompt,
        )  # fmt: skip
        if valid.plan is not None and valid.plan.frees_text_encoder:
            if isinstance(self.text_encoder, RememberingTextEncoder):
                self.text_encoder.free()
        return valid.bound(binding)

    def check(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> ValidRequest:
        """Check a scene and its settings, and plan its memory; `prepare` takes what this returns.

        Every picture is decoded, nothing is encoded. Raises LumosXError, as `generate` does.
        """
        try:
            return self._valid(scene, **settings)
        except LumosXError:
            self.health.count("requests")
            self.health.count("refused")
            raise

    def _valid(self, scene: Scene | str | Path, **settings: Any) -> ValidRequest:
        check_names(settings)
        scene = scene_of(scene)
        defaults, layouts = self.manifest.defaults, self.manifest.layouts
        chosen = {name: value for name, value in settings.items() if value is not None}
        size = chosen.get("size", VideoSize(*(defaults[n] for n in ("frames", "height", "width"))))
        if not isinstance(size, VideoSize):
            raise BadInput(
                f"size: got {size!r:.60}, accepted is rt.VideoSize(frames, height, width)"
            )
        asked: dict[str, Any] = {name: chosen.get(name, defaults[name]) for name in SAMPLING}
        schedule = chosen.get("schedule", RELEASED)
        sampling = check_sampling(chosen.get("seeds", (0,)), **asked, schedule=schedule)
        negative_prompt = chosen.get("negative_prompt", NEGATIVE_PROMPT)
        check_text(negative_prompt, "negative_prompt")
        prepared = prepare_scene(
            scene,
            size.height,
            size.width,
            max_references=layouts["references"][1],
            max_members=layouts["members"][1],
        )
        layout = self.mechanism.layout(prepared, size.grid)
        self.check_layout(layout, len(sampling.seeds))
        valid = ValidRequest(
            prepared, size, layout, **vars(sampling), negative_prompt=negative_prompt,
            schedule_name=schedule,
            mechanism=self.mechanism,
        )  # fmt: skip
        log.debug("request '%s': layout %s, %s", valid.name, layout.key, sampling)
        return replace(valid, plan=self._plan(valid)) if self._limited else valid

    @property
    def _limited(self) -> bool:
        return self.max_memory is not None or self.max_device_memory is not None

    def plan(
        self, scene: Scene | str | Path | Request | ValidRequest, **settings: Unpack[Settings]
    ) -> MemoryPlan:
        """Return what a request will need of memory, and how it is made to fit `max_memory`.

        No encoder is loaded. Raises LumosXError where it cannot fit.
        """
        if not isinstance(scene, Request | ValidRequest):
            scene = self._valid(scene, **settings)
        return scene.plan or self._plan(scene)

    def max_batch(self, request: Request, most: int) -> tuple[int, MemoryPlan | None]:
        """Return how many requests like this one, up to `most`, fit through the backend together.

        With the plan for so many, where there is a limit of memory.
        """
        streams = self.manifest.layouts.get("streams", [1, MAX_STREAMS])[1]
        most = max(1, min(most, streams // len(request.branches)))
        if not self._limited:
            return most, None
        for count in range(most, 1, -1):
            with suppress(LumosXError):
                return count, self._plan(request, count)
        return 1, request.plan

    def _plan(self, request: Request | ValidRequest, requests: int = 1) -> MemoryPlan:
        facts, manifest = self._encoder_facts, self.manifest
        need = memory.MemoryNeed(
            config=self.config,
            backend=manifest.backend,
            number_bytes=memory.number_bytes(manifest.backend, format_of(manifest.precision)),
            layout=request.layout,
            size=request.size,
            requests=requests,
            seeds=len(request.seeds),
            branches=len(request.branches),
            held_bytes=self._held_bytes + (0 if self.devices.encode_on_gpu else facts.vae_bytes),
            on_gpu=self.devices.denoise_on_gpu,
            encoders_on_gpu=self.devices.encode_on_gpu,
            gpu_held_bytes=self._gpu_held_bytes
            # and once more in bfloat16
            + (facts.vae_bytes * 3 // 2 if self.devices.encode_on_gpu else 0),
            text_encoder_bytes=facts.text_encoder_bytes,
            vae_width=facts.vae_width,
            vae_halo=facts.vae_halo,
            lossy=self.lossy,
        )
        return memory.plan(need, self.max_memory, self.max_device_memory)

    @cached_property
    def _encoder_facts(self) -> EncoderFacts:
        return encoder_facts(self.components)

    def sample(self, request: Request, edit: Edit | None = None) -> Iterator[SamplerState]:
        """Yield the noise, then the state after every step; stop iterating to cancel.

        edit: given every state, the noise too; returns the latents to go on with. Raises NotFinite,
        which names the step, and the block if its insides can be shown.
        """
        try:
            for (state,) in self.sample_together([request], edit=edit and _alone(edit)):
                if isinstance(state, NotFinite):
                    raise state
                yield state
        except NotFinite:
            raise
        except LumosXError as error:
            self.health.ended(error)
            raise

    def sample_together(
        self,
        requests: Sequence[Request],
        plan: MemoryPlan | None = None,
        edit: Edit | None = None,
    ) -> Iterator[list[SamplerState | NotFinite]]:
        """Do as `sample` for requests of one `batch_key`; see `denoise_together`.

        plan: of `max_batch`, for several requests; one carries its own.
        """
        self._check_usable()
        plan, spoiled = requests[0].plan if len(requests) == 1 else plan, 0
        for states in denoise_together(
            self.backend,
            requests,
            self.config.head_dim,
            sequential=plan is not None and plan.sequential,
            locate=self.locate,
            edit=edit,
        ):
            bad = sum(isinstance(state, NotFinite) for state in states)
            self.health.count("non_finite", bad - spoiled)
            spoiled = bad
            done = [s.step > 0 for s in states if not isinstance(s, NotFinite)]
            self.health.count("steps", sum(done))
            yield states

    def decode(self, request: Request, latents: Tensor) -> list[Video]:
        """Latents [seeds, channels, frames, rows, columns] to one video per seed.

        Raises NotFinite, and Flat for a video of one colour.
        """
        self._check_usable()
        fps = self.manifest.defaults["fps"]
        tile = None if request.plan is None else request.plan.tile
        try:
            videos = decode(self.vae, request, latents, fps, tile)
        except LumosXError as error:
            self.health.ended(error)
            raise
        self.health.count("videos", len(videos))
        return videos

    def stream(
        self, scene: Scene | str | Path, *, previews: bool = True, **settings: Unpack[Settings]
    ) -> Iterator[Event]:
        """Do as `generate`, step by step: an event after every step, then one with the videos.

        previews: every event shows the frame that the video would begin with. Stop iterating to
        cancel.
        """
        request = self.prepare(scene, **settings)
        _log_warnings(request)
        for state in self.sample(request):
            if state.step:
                preview = preview_of(self.vae, state.clean) if previews else None
                yield Event(state.step, state.steps, state.sigma, preview)
        videos = self.decode(request, state.latents)
        yield Event(state.steps, state.steps, state.sigma, videos=videos)

    def serve(
        self, *, together: int = 4, waiting: int = 16, gather_seconds: float = 0.05
    ) -> Service:
        """A service of this engine: many requests, batched and overlapping (`Service`)."""
        return Service(self, together=together, waiting=waiting, gather_seconds=gather_seconds)

    def locate(self, inputs: Inputs, latents: Tensor, time: int) -> str:
        """Return where a call's velocity stops being finite, in words (`diagnosis.explain`)."""
        return diagnosis.explain(self.backend, self.folder, self.manifest, inputs, latents, time)

    def check_layout(self, layout: Layout, seeds: int = 1) -> None:
        """Raise LumosXError where a layout is outside the range that the engine was built for."""
        values = layout.sizes | {"seeds": seeds}
        problems = [
            f"{name} is {values[name]}, the engine was built for {least} to {most}"
            for name, (least, most) in self.manifest.layouts.items()
            if name in values and not least <= values[name] <= most
        ]
        if problems:
            raise Unsupported(listing(f"layout {layout.key}", problems))

    @cached_property
    def components(self) -> Bundle:
        return encoders_of(self.manifest, self.folder, self._components)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        config = self.config
        return text_encoder_on(
            self.devices.encoders, self.components, config.text_len, config.text_dim,
            self.remembered,
        )  # fmt: skip

    @cached_property
    def vae(self) -> VideoAutoencoder:
        return vae_on(self.devices.encoders, self.components, self.remembered)


def _alone(edit: Edit) -> Edit:
    """Return `edit` for the states of several requests, which are one here."""

    def edited(state: SamplerState) -> Tensor:
        return edit(replace(state, latents=state.latents[0], clean=state.clean[0]))[None]

    return edited


def _log_warnings(request: Request) -> None:
    for warning in request.warnings:
        log.warning("'%s': %s", request.name, warning)
