"""`generate` over scenes: finds them, makes each one's videos, goes on after a bad one."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lumosx_rt.drawing.contact_sheet import contact_sheet
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.sampling.request import ValidRequest
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.folder import SCENE_FILE
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime.engine import Engine


@dataclass(frozen=True)
class Outcome:
    """What became of one scene: its files, or the reason why there are none."""

    scene: str
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_scenes(paths: Sequence[Path]) -> list[Path]:
    """Scene folders and files; a folder of prompt folders stands for all of them, by name.

    Raises LumosXError for a path where there is no scene.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise LumosXError(f"{path}: no such file or folder")
        inner = sorted(p for p in path.iterdir() if _is_scene(p)) if path.is_dir() else []
        if path.is_file() or _is_scene(path) or not inner:
            found.append(path)  # where it is no scene after all, reading it says why
        else:
            found += inner
    return found


def _is_scene(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("caption.txt", SCENE_FILE))


def generate_all(
    engine: Engine,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool,
    load: Callable[[Path], Scene] = Scene.load,
    checked: Callable[[ValidRequest], None] = lambda valid: None,
    progress: Callable[[str, SamplerState], None] = lambda name, state: None,
    **settings: Any,
) -> list[Outcome]:
    """Write `out`/<name>.mp4 (one per seed) and `out`/<name>.png for every scene.

    checked: shown every request before it starts. settings: those of `Engine.generate`. A scene
    that fails becomes an outcome with its error.
    """
    out.mkdir(parents=True, exist_ok=True)  # an OSError says at once that it cannot be
    outcomes: list[Outcome] = []
    taken: set[str] = set()
    for path in paths:
        warnings: tuple[str, ...] = ()
        try:
            scene = load(path)
            files = _files(out, scene, settings.get("seeds", (0,)))
            _check_free(files, taken, force)
            valid = engine.check(scene, **settings)
            warnings = valid.scene.warnings
            checked(valid)
            made = _make(engine, valid, files, progress)
            outcomes.append(Outcome(scene.name, made, warnings))
            taken |= set(made)
        except LumosXError as error:
            outcomes.append(Outcome(str(path), warnings=warnings, error=str(error)))
    return outcomes


def _files(out: Path, scene: Scene, seeds: Sequence[int]) -> list[Path]:
    names = [scene.name] if len(seeds) == 1 else [f"{scene.name}-seed{seed}" for seed in seeds]
    return [out / f"{name}{suffix}" for name in names for suffix in (".mp4", ".png")]


def _check_free(files: list[Path], taken: set[str], force: bool) -> None:
    for file in files:
        if str(file) in taken:
            raise LumosXError(f"{file} was just written for another scene of that name; rename one")
        if file.exists() and not force:
            raise LumosXError(f"{file} exists; choose another folder with -o, or use --force")


def _make(
    engine: Engine,
    valid: ValidRequest,
    files: list[Path],
    progress: Callable[[str, SamplerState], None],
) -> tuple[str, ...]:
    request = engine.prepare(valid)
    for state in engine.sample(request):
        progress(valid.name, state)
    videos = engine.decode(request, state.latents)
    labelled = list(zip(valid.scene.words, valid.scene.pictures, strict=True))
    for video, clip, sheet in zip(videos, files[::2], files[1::2], strict=True):
        video.save(clip)
        title = f"{valid.name}, seed {video.seed}"
        image = contact_sheet(labelled, video.frames, title=title)
        with replacing(sheet) as temporary:
            image.save(temporary, format="PNG")
    return tuple(str(file) for file in files)
