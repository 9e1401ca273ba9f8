"""`generate` over scenes: finds them, makes each one's videos, goes on after a bad one."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lumosx_rt.drawing.contact_sheet import contact_sheet
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.places import held, try_place
from lumosx_rt.reference.sampling.request import Request, ValidRequest
from lumosx_rt.reference.sampling.solvers import SamplerState
from lumosx_rt.reference.scenes.folder import SCENE_FILE
from lumosx_rt.reference.scenes.prepared import PreparedScene
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.runtime.engine import Engine


@dataclass(frozen=True)
class Outcome:
    """What became of one scene: its files, and the reason why they are not all."""

    scene: str
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_scenes(paths: Sequence[Path]) -> list[Path]:
    """Scene folders and files; a folder of prompt folders stands for all of them, by name.

    What cannot be read counts as a scene: reading it says why. Raises LumosXError for a path where
    there is nothing.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.lexists(path):
            raise BadInput(f"{path}: no such file or folder")
        found += _inner_scenes(path) or [path]
    return found


def _inner_scenes(path: Path) -> list[Path]:
    """Return the prompt folders in a folder that is none itself."""
    try:
        if path.is_dir() and not _is_scene(path):
            return sorted(inner for inner in path.iterdir() if _is_scene(inner))
    except OSError:
        pass
    return []


def _is_scene(path: Path) -> bool:
    try:
        return path.is_dir() and any(
            (path / name).is_file() for name in ("caption.txt", SCENE_FILE)
        )
    except OSError:  # may not be entered
        return True


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to, before the work. Raises LumosXError."""
    try:
        try_place(Path(os.path.abspath(out), "video.mp4"))
    except ValueError as error:  # no name of a file
        raise BadInput(f"{out!s:.200}: {error}; choose another folder with -o") from None


def generate_all(
    engine: Engine,
    paths: Sequence[Path],
    out: Path,
    *,
    force: bool,
    load: Callable[[Path], Scene] = Scene.load,
    checked: Callable[[ValidRequest], None] = lambda valid: None,
    waiting: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, SamplerState], None] = lambda name, state: None,
    **settings: Any,
) -> Iterator[Outcome]:
    """Write `out`/<name>.mp4 (one per seed) and `out`/<name>.png for every scene, one by one.

    checked: shown every request before it starts. waiting: told where another process makes the
    same files. settings: those of `Engine.generate`. Whatever fails of a scene becomes its outcome,
    and the next one is made; only interruption and the lack of memory end it all, after the outcome
    of the scene that was under way.
    """
    taken: set[str] = set()
    for path in paths:
        name, made = str(path), list[str]()
        warnings: tuple[str, ...] = ()
        try:
            scene = load(path)
            with held(Path(os.path.abspath(out), scene.name), "generate", waiting):
                files = _files(out, scene, settings.get("seeds", (0,)))
                _check_free(files, taken, force)
                valid = engine.check(scene, **settings)
                warnings = valid.scene.warnings
                checked(valid)
                request = engine.prepare(valid)
                warnings = request.warnings
                for file in _make(engine, valid.scene, request, files, progress):
                    made.append(str(file))
            yield Outcome(scene.name, tuple(made), warnings)
        except (KeyboardInterrupt, MemoryError) as error:
            yield Outcome(name, tuple(made), warnings, f"stopped: {_reason(error)}")
            raise
        except Exception as error:
            yield Outcome(name, tuple(made), warnings, _reason(error))
        taken |= set(made)


def _reason(error: BaseException) -> str:
    """Return what a scene's error says; of one that was not meant for people, its kind too."""
    if isinstance(error, LumosXError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _files(out: Path, scene: Scene, seeds: Sequence[int]) -> list[Path]:
    names = [scene.name] if len(seeds) == 1 else [f"{scene.name}-seed{seed}" for seed in seeds]
    return [out / f"{name}{suffix}" for name in names for suffix in (".mp4", ".png")]


def _check_free(files: list[Path], taken: set[str], force: bool) -> None:
    for file in files:
        if str(file) in taken:
            raise BadInput(f"{file} was just written for another scene of that name; rename one")
        if file.exists() and not force:
            raise BadInput(f"{file} exists; choose another folder with -o, or use --force")


def _make(
    engine: Engine,
    scene: PreparedScene,
    request: Request,
    files: list[Path],
    progress: Callable[[str, SamplerState], None],
) -> Iterator[Path]:
    """Make a request's videos and yield every file that is finished."""
    for state in engine.sample(request):
        progress(request.name, state)
    videos = engine.decode(request, state.latents)
    labelled = list(zip(scene.words, scene.pictures, strict=True))
    for video, clip, sheet in zip(videos, files[::2], files[1::2], strict=True):
        video.save(clip)
        yield clip
        title = f"{request.name}, seed {video.seed}"
        image = contact_sheet(labelled, video.frames, title=title)
        with replacing(sheet) as temporary:
            image.save(temporary, format="PNG")
        yield sheet
