"""The wheel as somebody installs it, without a network: unpacked beside links to what it declares.

`Installed` runs programs with `python -S`, which adds no site-packages. So they see the wheel and
the packages that the wheel asks for, and neither the checkout nor anything else installed here.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", "reference", "kernels", "export", "calibration",
    "lumosx_rt",
)  # fmt: skip
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({out!r}))"


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that no earlier build is in it."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path, hidden = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=hidden)
        else:
            shutil.copy(path, source)
    code = BUILD.format(out=str(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def closure(project: Distribution, extras: tuple[str, ...]) -> dict[str, Distribution]:
    """The installed packages that a project asks for with some extras, and what those ask for."""
    found: dict[str, Distribution] = {}
    todo, seen = [(project, extra) for extra in ("", *extras)], set()
    while todo:
        asking, extra = todo.pop()
        for line in asking.requires or []:
            wanted = Requirement(line)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(wanted.name)
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # for another machine: its absence is noticed when it is imported
            for inner in ("", *wanted.extras):
                if (name, inner) not in seen:
                    seen.add((name, inner))
                    todo.append((found[name], inner))
    return found


@cache
def _tops(package: Distribution) -> frozenset[Path]:
    """What a package has in site-packages, at its top."""
    names = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "bin")}
    return frozenset(Path(str(package.locate_file(name))) for name in names)


@dataclass(frozen=True)
class Installed:
    """A folder like site-packages, and a place of its own to run in."""

    packages: Path
    place: Path

    @classmethod
    def of(cls, wheel: Path, folder: Path, *extras: str) -> "Installed":
        """Unpack a wheel, with links to what it asks for with these extras."""
        packages, place = folder / "packages", folder / "place"
        place.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        about = next(packages.glob("*.dist-info"))
        for package in closure(Distribution.at(about), extras).values():
            for top in _tops(package):
                if top.exists() and not (packages / top.name).exists():
                    (packages / top.name).symlink_to(top)
        return cls(packages, place)

    def run(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `lumosx-rt` with these words; check its exit code."""
        return self.python("-m", "lumosx_rt", *words, code=code)

    def python(self, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        kept = ("PATH", "HOME", "OMP_NUM_THREADS", "TMPDIR")
        surroundings = {name: os.environ[name] for name in kept if name in os.environ}
        done = subprocess.run(
            [sys.executable, "-S", *map(str, words)],
            cwd=self.place,
            capture_output=True,
            text=True,
            env=surroundings
            | {"PYTHONPATH": str(self.packages), "LUMOSX_CACHE": str(self.place / "cache")},
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done
