"""The house: which room may import which, what stays light, how the package is put together."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ("calibration", "export", "kernels", "reference")
FOLDERS = (*LINKS, "lumosx_rt")
ORDER = (
    # floor 1: what is computed, in plain PyTorch
    "reference.version",
    "reference.errors",  # the one exception
    "reference.numbers",  # what people give as one
    "reference.kinds",  # what a function is given, against its signature
    "reference.process",  # whether it is the one that loaded something
    "reference.packages",  # what not everybody needs
    "reference.files",  # written whole or not at all, read under limits, hashed
    "reference.places",  # where output goes, and who holds it
    "reference.charts",
    "reference.progress",  # how long work says what it does
    "reference.metrics",  # how far apart two results are
    "reference.scenes",  # what a person writes, prepared once
    "reference.checkpoints",  # files of weights of any origin, none trusted
    "reference.encoders",  # before and after the denoiser
    "reference.mechanisms",  # how a request enters the video
    "reference.mechanisms.lumosx",
    "reference.backbones",  # the transformer, its operations, its cost
    "reference.sampling",  # from noise to latents
    "reference.training",
    "reference.world",  # the drawn world
    "reference.world.train",
    # floor 2: the same operations, fast
    "kernels",
    "kernels.plugins",
    # floor 3
    "export",  # one dynamic program
    "export.onnx",
    "export.tensorrt",
    "calibration",  # number formats, scales, what they cost
    "calibration.apply",
    # floor 4: what a user touches
    "artifact",  # an engine on disk
    "drawing",
    "cuda",  # the driver: facts, memory, streams, graphs
    "backends.common",
    "backends.onnxruntime",
    "backends.torch",
    "backends.tensorrt",
    "backends.tensorrt_rtx",
    "backends",  # their table
    "runtime.devices",  # where its parts run, and what they keep
    "runtime",  # a request on an engine
    "diffusers",  # the same, as users of diffusers call it
    "builder",
    "parity",  # is it the same video?
    "bench.common",
    "bench.quality",
    "bench.speed",
    "bench",
    "cli",
)
"""Every room, in the order of imports. A room may import itself and earlier ones."""
CROWDED = {"cli", "kernels"}  # one file a command or an operation, as many as there are
MOST_FILES, MOST_LINES = 12, 450
LIGHT = ["reference/mechanisms/lumosx/layout.py", "lumosx_rt/artifact/manifest.py"]
PORTABLE = [
    *(f"reference/mechanisms/lumosx/{name}.py" for name in ("layout", "structure")),
    *(f"reference/backbones/{name}.py" for name in ("config", "ops", "wan")),
]
NAMING = {  # above the sampler, and why each still names a type of LumosX
    "calibration.noise": "binds a request of noise without a scene",
    "export.limits": "the size of a pooling tile bounds the tiles",
    "export.onnx.opaque_nodes": "LumosX's operations as opaque nodes",
    "export.tensorrt.padded_keys": "pads the references of LumosX's rectangle",
    "backends.tensorrt.compile": "is checked on layouts that must fit a plan",
    "backends.tensorrt_rtx.fp8": "pads keys to slots of references",
    "drawing.layout": "draws LumosX's layout",
    "runtime.describe": "describes LumosX's layouts",
}


def walk(*folders: str) -> list[Path]:
    """Python files of top-level folders; links (the floors inside lumosx_rt/) are not followed."""
    walks = (found for folder in folders for found in os.walk(ROOT / folder, followlinks=False))
    return [Path(base, name) for base, _, names in walks for name in names if name.endswith(".py")]


def name_of(file: Path) -> str:
    parts = [part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    own = parts[0] in ("lumosx_rt", "tests", "benchmarks")
    return ".".join(parts if own else ["lumosx_rt", *parts])


MODULES = {name_of(file): file for file in walk(*FOLDERS)}
OUTSIDE = {name_of(file): file for file in walk("benchmarks")}


def room_of(module: str) -> str | None:
    """The room of a module of the package; None for the package itself and `__main__`."""
    name = module.removeprefix("lumosx_rt").removeprefix(".")
    if name in ("", "__main__"):
        return None
    return name if name in ORDER else name.rpartition(".")[0]


def imports(tree: ast.AST, deep: bool) -> Iterator[str]:
    """Every module a file imports; not `deep`: only what runs when the file itself is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            known = MODULES.keys() | OUTSIDE.keys()
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & known
            if not parts or node.module in known:
                yield str(node.module)
            yield from parts
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not deep:
            continue
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, deep)


def imported(file: Path, deep: bool = True) -> set[str]:
    return set(imports(ast.parse(file.read_text("utf-8")), deep))


def wrong_way(module: str, file: Path, order: tuple[str, ...] = ORDER) -> list[str]:
    """What a module imports of rooms that come later than its own; lazy imports count."""
    own = room_of(module)
    if own is None:
        return []
    found = []
    for name in imported(file):
        if name in MODULES and (other := room_of(name)) not in (None, own):
            if order.index(str(other)) > order.index(own):
                found.append(name)
    return found


def test_there_is_something_to_look_at() -> None:
    assert {"lumosx_rt", "lumosx_rt.export.onnx.graph"} <= set(MODULES)
    wanted = {"torch", "lumosx_rt.reference.mechanisms.lumosx.structure"}
    assert imported(ROOT / "reference" / "backbones" / "ops.py") >= wanted


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_imports_only_from_earlier_rooms(module: str) -> None:
    room = room_of(module)
    assert room is None or room in ORDER, f"{module} is in no room of ORDER"
    for name in imported(MODULES[module]):
        assert name.split(".")[0] not in {"tests", "benchmarks", "samples", "docs", *LINKS}, name
        if name.split(".")[0] == "lumosx_rt":
            assert name in MODULES, f"{name} does not exist"
    assert not wrong_way(module, MODULES[module])


def test_an_import_the_wrong_way_is_seen(tmp_path: Path) -> None:
    """The measure can fail, also for an import inside a function."""
    file = tmp_path / "lazy.py"
    file.write_text("def f():\n    from lumosx_rt.runtime.engine import load\n    return load\n")
    assert wrong_way("lumosx_rt.artifact.lazy", file) == ["lumosx_rt.runtime.engine"]
    assert wrong_way("lumosx_rt.cli.lazy", file) == []


def test_every_room_exists_and_is_named_once() -> None:
    rooms = {room_of(module) for module in MODULES} - {None}
    assert rooms == set(ORDER) and len(ORDER) == len(set(ORDER))


def test_no_circle_of_files() -> None:
    """Lazy imports count, so nothing can hide in a function."""
    left = {name: imported(file) & MODULES.keys() for name, file in MODULES.items()}
    left = {name: needs - {name} for name, needs in left.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_nothing_lies_at_the_root_of_the_package() -> None:
    files = {path.name for path in (ROOT / "lumosx_rt").iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}


def test_folders_are_small() -> None:
    count: dict[str, int] = {}
    for file in walk(*FOLDERS, "benchmarks"):
        folder = file.parent.relative_to(ROOT).as_posix()
        count[folder] = count.get(folder, 0) + 1
    crowded = {name for name, files in count.items() if files > MOST_FILES}
    allowed = {"kernels", "lumosx_rt/cli", "benchmarks/gpu"}  # benchmarks/gpu: one file a stage
    assert crowded <= allowed, crowded - allowed


def test_no_long_files() -> None:
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines())
        for file in walk(*FOLDERS, "tests", "benchmarks", "samples", "examples", "docs")
    }
    assert len(lines) > 30
    assert not {file: count for file, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("module", sorted(OUTSIDE))
def test_benchmarks_do_not_import_tests(module: str) -> None:
    assert not [name for name in imported(OUTSIDE[module]) if name.split(".")[0] == "tests"]


def test_a_mechanism_never_imports_a_backbone() -> None:
    for module, file in MODULES.items():
        if ".mechanisms." in module:
            assert not [name for name in imported(file) if ".backbones." in name], module


def test_nothing_above_the_sampler_names_a_mechanism() -> None:
    """But kernels of LumosX's own operations, and those that say why."""
    above = ORDER.index("reference.sampling")
    naming = set()
    for module, file in MODULES.items():
        room = room_of(module)
        if room is None or ORDER.index(room) <= above or room.startswith(("reference", "kernels")):
            continue
        if any(".mechanisms.lumosx." in name for name in imported(file)):
            naming.add(module.removeprefix("lumosx_rt."))
    assert naming == set(NAMING)


def test_kernels_and_the_model_need_only_torch_triton_and_numpy() -> None:
    todo = [name_of(file) for file in [*walk("kernels"), *(ROOT / path for path in PORTABLE)]]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        seen.add(module)
        for name in imported(MODULES[module]):
            package = name.split(".")[0]
            if package == "lumosx_rt":
                todo += {name} - seen
            else:
                allowed = {"torch", "triton", "numpy", *sys.stdlib_module_names}
                assert package in allowed, f"{module} imports {name}"
    assert "lumosx_rt.reference.errors" in seen


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


HEAVY = "print({'torch', 'triton', 'diffusers', 'transformers', 'onnxruntime'} & set(sys.modules))"
HELP = """
import runpy, sys
sys.argv = ["lumosx-rt", *{words}]
try:
    runpy.run_module("lumosx_rt", run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
"""


@pytest.mark.parametrize("path", LIGHT)
def test_what_must_stay_light_imports_no_torch(path: str) -> None:
    assert python(f"import sys, {name_of(ROOT / path)}; {HEAVY}") == "set()"


@pytest.mark.parametrize(
    "words", [["--help"], ["build", "--help"], ["generate", "--help"]], ids=str
)
def test_help_imports_no_torch(words: list[str]) -> None:
    assert python(HELP.format(words=words) + HEAVY) == "set()"


def test_the_package_imports_at_once() -> None:
    code = "import time; a = time.perf_counter(); import lumosx_rt; print(time.perf_counter() - a)"
    assert min(float(python(code)) for _ in range(3)) < 0.2


def test_public_names_are_where_they_are_said_to_be() -> None:
    code = "import lumosx_rt as rt; print(all(getattr(rt, name) for name in rt.__all__))"
    assert python(code) == "True"


def test_four_links_make_one_package() -> None:
    links = {path.name: path for path in (ROOT / "lumosx_rt").iterdir() if path.is_symlink()}
    assert sorted(links) == sorted(LINKS)
    for name, link in links.items():
        assert os.readlink(link) == f"../{name}" and link.is_dir()
        assert not (ROOT / name / "__init__.py").exists(), f"a bare `{name}` would shadow others"
