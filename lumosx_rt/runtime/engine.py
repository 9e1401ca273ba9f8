"""An engine directory, loaded: scenes in, videos out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from torch import Tensor

from lumosx_rt.artifact import certificate
from lumosx_rt.artifact.manifest import Manifest, check_files, read_manifest
from lumosx_rt.artifact.source import encoders_of
from lumosx_rt.backends.common.devices import Provider
from lumosx_rt.backends.loading import load_backend
from lumosx_rt.export.program import MAX_STREAMS
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.checkpoints.bundle import Bundle
from lumosx_rt.reference.encoders.tiled_decode import halo
from lumosx_rt.reference.encoders.umt5 import TextEncoder, load_text_encoder
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder, load_vae
from lumosx_rt.reference.errors import LumosXError, NotFinite, listing
from lumosx_rt.reference.mechanisms.lumosx.binding import bind
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling import denoise as runtime
from lumosx_rt.reference.sampling.inputs import Backend, Inputs
from lumosx_rt.reference.sampling.request import Request
from lumosx_rt.reference.sampling.shortcuts import EXACT, Lossy
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import NEGATIVE_PROMPT
from lumosx_rt.runtime import diagnosis, memory
from lumosx_rt.runtime.guards import Health, check_binding
from lumosx_rt.runtime.memory import Job, MemoryPlan, held_at_load, parse_bytes
from lumosx_rt.runtime.request_cache import (
    REMEMBERED_BYTES,
    Remembered,
    RememberingTextEncoder,
    RememberingVae,
)
from lumosx_rt.runtime.streaming import Event, preview_of
from lumosx_rt.runtime.video import Video

if TYPE_CHECKING:
    from lumosx_rt.runtime.service import Service


def load(
    path: str | Path,
    *,
    components: str | Path | None = None,
    provider: Provider = "auto",
    check_hashes: bool = True,
    trust: bool = False,
    unverified: bool = False,
    max_memory: str | int | None = None,
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
    remember: for embeddings and latents kept between requests, at most 1/16 of max_memory; 0 is
    none.
    lossy: shortcuts over neighbouring steps; the video is another one then.
    Raises LumosXError for whatever does not fit.
    """
    folder = Path(path)
    limit = None if max_memory is None else parse_bytes(max_memory)
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=check_hashes)
    certificate.demand(folder, unverified=unverified)
    backend = load_backend(folder, manifest, provider, trust=trust, lossy=lossy)
    kept = parse_bytes(remember) if remember else 0
    return Engine(
        folder, manifest, backend, components, max_memory=limit, remember=kept, lossy=lossy
    )


class Settings(TypedDict, total=False):
    """What may be said of a request; None, or unsaid, is the engine's default."""

    size: VideoSize | None
    steps: int | None
    guidance: float | None
    shift: float | None
    seeds: Sequence[int]
    negative_prompt: str | None


SAMPLING = ("steps", "shift", "guidance")


class Engine:
    """A compiled LumosX: `generate` makes videos, by `prepare`, `sample` and `decode`."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        backend: Backend,
        components: str | Path | None = None,
        *,
        max_memory: int | None = None,
        remember: int = REMEMBERED_BYTES,
        lossy: Lossy = EXACT,
    ) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend
        self.lossy = lossy
        self.config = LumosXConfig.from_dict(manifest.model)
        self.max_memory = max_memory
        self._held_bytes = held_at_load()
        if max_memory is not None:
            # what may be remembered is set aside, so that plans stay as told
            remember = min(remember, max_memory // 16)
            self._held_bytes += remember
        self.health, self.remembered = Health(), Remembered(remember)
        self._components = components

    def generate(
        self,
        scene: Scene | str | Path,
        *,
        progress: Callable[[SamplerState], None] = lambda state: None,
        **settings: Unpack[Settings],
    ) -> list[Video]:
        """One video per seed. What is not said is the engine's default (`manifest.defaults`).

        `progress` is shown the state after every step. Raises LumosXError for scenes and sizes that
        do not fit, before any heavy work, and for output that is not finite or flat.
        """
        request = self.prepare(scene, **settings)
        for state in self.sample(request):
            progress(state)
        return self.decode(request, state.latents)

    def prepare(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> Request:
        """Check a scene and bind it: text and references encoded, all known but the noise."""
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

    def _prepared(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> Request:
        asked = self._asked(scene, **settings)
        plan = self._limited(asked)
        layout, binding = bind(
            asked.scene, asked.size, self.text_encoder, self.vae, asked.negative_prompt
        )
        if plan is not None and plan.frees_text_encoder:
            if isinstance(self.text_encoder, RememberingTextEncoder):
                self.text_encoder.free()
        return Request(asked.scene.name, asked.size, layout, binding, asked.seeds, **asked.sampling)

    def _asked(self, scene: Scene | str | Path, **settings: Unpack[Settings]) -> "_Asked":
        """A scene and its settings, checked; nothing heavy is done."""
        if not isinstance(scene, Scene):
            scene = Scene.load(scene)
        defaults = self.manifest.defaults
        chosen = {name: value for name, value in settings.items() if value is not None}
        unknown = set(chosen) - Settings.__optional_keys__
        if unknown:
            raise LumosXError(
                f"settings: {', '.join(sorted(unknown))} not known, accepted are "
                f"{', '.join(sorted(Settings.__optional_keys__))}"
            )
        size = settings.get("size") or VideoSize(
            defaults["frames"], defaults["height"], defaults["width"]
        )
        said = settings.get("seeds")
        seeds = (0,) if said is None else tuple(said)
        scene.check(
            max_references=self.manifest.layouts["references"][1],
            max_members=self.manifest.layouts["members"][1],
        )
        layout = scene.layout(*size.grid)
        self.check_layout(layout, len(seeds))
        sampling: dict[str, Any] = {name: chosen.get(name, defaults[name]) for name in SAMPLING}
        runtime.check_sampling(seeds, **sampling)
        negative_prompt = settings.get("negative_prompt")
        if negative_prompt is None:
            negative_prompt = NEGATIVE_PROMPT
        return _Asked(scene, size, layout, seeds, sampling, negative_prompt)

    def plan(self, scene: Scene | str | Path | Request, **settings: Unpack[Settings]) -> MemoryPlan:
        """What a request will need of memory, and how it is made to fit `max_memory`.

        Raises LumosXError where it cannot fit.
        """
        asked = scene if isinstance(scene, Request) else self._asked(scene, **settings)
        return self._plan(asked)

    def fitting(self, request: Request, most: int) -> int:
        """How many requests like this one, up to `most`, can go through the backend together."""
        guided = request.guidance != 1.0
        streams = self.manifest.layouts.get("streams", [1, MAX_STREAMS])[1]
        most = max(1, min(most, streams // (2 if guided else 1)))
        if self.max_memory is None:
            return most
        for count in range(most, 1, -1):
            with suppress(LumosXError):
                self._plan(request, count)
                return count
        return 1

    def _limited(self, asked: "Request | _Asked", requests: int = 1) -> MemoryPlan | None:
        """The plan where there is a limit to keep."""
        return None if self.max_memory is None else self._plan(asked, requests)

    def _plan(self, asked: "Request | _Asked", requests: int = 1) -> MemoryPlan:
        vae: Any = self.vae.model
        weights = sum(p.numel() * p.element_size() for p in vae.parameters())
        backend = self.manifest.backend
        text_files = self.components.require("text_encoder").files
        job = Job(
            config=self.config,
            backend=backend,
            number_bytes=4 if "onnxruntime" == backend or self.manifest.precision == "fp32" else 2,
            layout=asked.layout,
            size=asked.size,
            requests=requests,
            seeds=len(asked.seeds),
            branches=1 if asked.guidance == 1.0 else 2,
            held_bytes=self._held_bytes + weights,
            text_encoder_bytes=sum(file.stat().st_size for file in text_files),
            vae_width=int(vae.config.base_dim),
            vae_halo=halo(vae.decoder),
            lossy=self.lossy,
        )
        return memory.plan(job, self.max_memory)

    def sample(self, request: Request) -> Iterator[SamplerState]:
        """Yields the noise, then the state after every step; stop iterating to cancel.

        Raises NotFinite, which names the step, and the block if its insides can be shown.
        """
        try:
            for (state,) in self.sample_together([request]):
                if isinstance(state, NotFinite):
                    raise state
                yield state
        except NotFinite:
            raise
        except LumosXError as error:
            self.health.ended(error)
            raise

    def sample_together(
        self, requests: Sequence[Request]
    ) -> Iterator[list[SamplerState | NotFinite]]:
        """`sample` for requests of one `together_key`; see `runtime.denoise_together`."""
        plan, spoiled = self._limited(requests[0], len(requests)), 0
        for states in runtime.denoise_together(
            self.backend,
            requests,
            self.config.head_dim,
            sequential=plan is not None and plan.sequential,
            locate=self.locate,
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
        plan, fps = self._limited(request), self.manifest.defaults["fps"]
        try:
            videos = runtime.decode(self.vae, request, latents, fps, plan.tile if plan else None)
        except LumosXError as error:
            self.health.ended(error)
            raise
        self.health.count("videos", len(videos))
        return videos

    def stream(
        self, scene: Scene | str | Path, *, previews: bool = True, **settings: Unpack[Settings]
    ) -> Iterator[Event]:
        """`generate`, told step by step: an event after every step, then one with the videos.

        previews: every event shows the frame that the video would begin with. Stop iterating to
        cancel.
        """
        request = self.prepare(scene, **settings)
        for state in self.sample(request):
            if state.step:
                preview = preview_of(self.vae, state.clean) if previews else None
                yield Event(state.step, state.steps, state.sigma, preview)
        videos = self.decode(request, state.latents)
        yield Event(state.steps, state.steps, state.sigma, videos=videos)

    def serve(
        self, *, together: int = 4, waiting: int = 16, gather_seconds: float = 0.05
    ) -> "Service":
        """A service of this engine: many requests, batched and overlapping (`serving.Service`)."""
        from lumosx_rt.runtime.service import Service

        return Service(self, together=together, waiting=waiting, gather_seconds=gather_seconds)

    def locate(self, inputs: Inputs, latents: Tensor, time: int) -> str:
        """Where a call's velocity stops being finite, in words (`diagnosis.explain`)."""
        return diagnosis.explain(self.backend, self.folder, self.manifest, inputs, latents, time)

    def check_layout(self, layout: SceneLayout, seeds: int = 1) -> None:
        """Raises LumosXError where a layout is outside the range that the engine was built for."""
        values = {
            "frames": layout.video_frames,
            "height": layout.height,
            "width": layout.width,
            "references": layout.references,
            "members": layout.grouping.index.shape[1],
            "seeds": seeds,
        }
        problems = [
            f"{name} is {values[name]}, the engine was built for {least} to {most}"
            for name, (least, most) in self.manifest.layouts.items()
            if name in values and not least <= values[name] <= most
        ]
        if problems:
            raise LumosXError(listing(f"layout {layout.key}", problems))

    @cached_property
    def components(self) -> Bundle:
        return encoders_of(self.manifest, self.folder, self._components)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        encoder = RememberingTextEncoder(
            lambda: load_text_encoder(self.components, self.config.text_len), self.remembered
        )
        if encoder.text_dim != self.config.text_dim:
            raise LumosXError(
                f"text encoder: its embeddings are {encoder.text_dim} wide, the transformer reads "
                f"{self.config.text_dim}; they are not of one model"
            )
        return encoder

    @cached_property
    def vae(self) -> VideoAutoencoder:
        return RememberingVae(load_vae(self.components), self.remembered)


@dataclass(frozen=True)
class _Asked:
    """A scene and what is asked of it, defaults filled in."""

    scene: Scene
    size: VideoSize
    layout: SceneLayout
    seeds: tuple[int, ...]
    sampling: dict[str, Any]
    negative_prompt: str

    @property
    def guidance(self) -> float:
        return float(self.sampling["guidance"])
