"""An engine directory, loaded: scenes in, videos out."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import Tensor

from lumosx_rt import diagnosis, runtime
from lumosx_rt.backends import Backend, Inputs
from lumosx_rt.backends.loading import load_backend
from lumosx_rt.backends.providers import Provider
from lumosx_rt.guards import Health, NotFinite, check_binding
from lumosx_rt.manifest import Manifest, check_files, read_manifest
from lumosx_rt.reference.binding import NEGATIVE_PROMPT, VideoSize, bind
from lumosx_rt.reference.bundle import Bundle
from lumosx_rt.reference.config import LumosXConfig
from lumosx_rt.reference.encoders import TextEncoder, VideoAutoencoder, load_text_encoder, load_vae
from lumosx_rt.reference.errors import LumosXError, listing
from lumosx_rt.reference.flow import SamplerState
from lumosx_rt.reference.layout import SceneLayout
from lumosx_rt.reference.scene import Scene
from lumosx_rt.runtime import Request, Video
from lumosx_rt.source import encoders_of


def load(
    path: str | Path,
    *,
    components: str | Path | None = None,
    provider: Provider = "auto",
    check_hashes: bool = True,
    trust: bool = False,
) -> "Engine":
    """Load an engine directory.

    components: a folder with text encoder, tokenizer and VAE, where the engine has none of its own.
    check_hashes: compare every file's content with the manifest (sizes always are).
    trust: run compiled code (torch, tensorrt-rtx) that was not made on this machine; code can do
    whatever you can.
    Raises LumosXError for whatever does not fit.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    check_files(folder, manifest, hashes=check_hashes)
    return Engine(
        folder, manifest, load_backend(folder, manifest, provider, trust=trust), components
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
    ) -> None:
        self.folder, self.manifest, self.backend = folder, manifest, backend
        self.config = LumosXConfig.from_dict(manifest.model)
        self.health = Health()
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
        self.check_layout(scene.layout(*size.grid), len(seeds))
        sampling: dict[str, Any] = {name: chosen.get(name, defaults[name]) for name in SAMPLING}
        runtime.check_sampling(seeds, **sampling)
        negative_prompt = settings.get("negative_prompt")
        layout, binding = bind(
            scene,
            size,
            self.text_encoder,
            self.vae,
            NEGATIVE_PROMPT if negative_prompt is None else negative_prompt,
        )
        return Request(scene.name, size, layout, binding, seeds, **sampling)

    def sample(self, request: Request) -> Iterator[SamplerState]:
        """Yields the noise, then the state after every step; stop iterating to cancel.

        Raises NotFinite, which names the step, and the block if its insides can be shown.
        """
        head_dim = self.config.head_dim
        try:
            for state in runtime.denoise(self.backend, request, head_dim, locate=self.locate):
                self.health.count("steps", int(state.step > 0))
                yield state
        except LumosXError as error:
            self.health.ended(error)
            raise

    def decode(self, request: Request, latents: Tensor) -> list[Video]:
        """Latents [seeds, channels, frames, rows, columns] to one video per seed.

        Raises NotFinite, and Flat for a video of one colour.
        """
        try:
            videos = runtime.decode(self.vae, request, latents, self.manifest.defaults["fps"])
        except LumosXError as error:
            self.health.ended(error)
            raise
        self.health.count("videos", len(videos))
        return videos

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
        encoder = load_text_encoder(self.components, self.config.text_len)
        if encoder.text_dim != self.config.text_dim:
            raise LumosXError(
                f"text encoder: its embeddings are {encoder.text_dim} wide, the transformer reads "
                f"{self.config.text_dim}; they are not of one model"
            )
        return encoder

    @cached_property
    def vae(self) -> VideoAutoencoder:
        return load_vae(self.components)
