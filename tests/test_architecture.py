"""The floors: who may import whom, what stays light, how the package is put together."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"reference": 1, "kernels": 2, "export": 3, "calibration": 3, "lumosx_rt": 4}
OUTSIDE = ("tests", "benchmarks", "samples", "examples")
LINKS = ("calibration", "export", "kernels", "reference")
LIGHT = ["reference/mechanisms/lumosx/layout.py", "lumosx_rt/artifact/manifest.py"]
PORTABLE = [
    "reference/mechanisms/lumosx/layout.py", "reference/mechanisms/lumosx/structure.py",
    "reference/backbones/config.py", "reference/backbones/ops.py", "reference/backbones/wan.py",
]  # fmt: skip


def files(*folders: str) -> list[Path]:
    """Python files of top-level folders; links (the floors inside lumosx_rt/) are not followed."""
    walks = (walk for folder in folders for walk in os.walk(ROOT / folder, followlinks=False))
    return [Path(base, name) for base, _, names in walks for name in names if name.endswith(".py")]


def name_of(file: Path) -> str:
    parts = [part for part in file.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
    return ".".join(parts if parts[0] == "lumosx_rt" else ["lumosx_rt", *parts])


MODULES = {name_of(file): file for file in files(*FLOORS)}


def floor_of(module: str) -> str:
    """The folder a module of the package lives in."""
    part = module.split(".")[1] if "." in module else ""
    return part if part in LINKS else "lumosx_rt"


def imports(tree: ast.AST, deep: bool) -> Iterator[str]:
    """Every module a file imports; not `deep`: only what runs when the file itself is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            parts = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            if not parts or node.module in MODULES:
                yield str(node.module)
            yield from parts
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not deep:
            continue
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, deep)


def imported(file: Path, deep: bool = True) -> set[str]:
    return set(imports(ast.parse(file.read_text("utf-8")), deep))


def test_there_is_something_to_look_at() -> None:
    assert {
        "lumosx_rt",
        "lumosx_rt.reference.mechanisms.lumosx.layout",
        "lumosx_rt.export.onnx.graph",
    } <= set(MODULES)
    assert imported(ROOT / "reference" / "backbones" / "ops.py") >= {
        "torch",
        "lumosx_rt.reference.mechanisms.lumosx.structure",
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_file_imports_from_its_own_floor_or_lower_ones(module: str) -> None:
    own = floor_of(module)
    for name in imported(MODULES[module]):
        assert name.split(".")[0] not in {"tests", "benchmarks", "samples", "examples", *LINKS}, (
            name
        )
        if name.split(".")[0] == "lumosx_rt":
            assert name in MODULES, f"{name} does not exist"
            other = floor_of(name)
            assert other == own or FLOORS[other] < FLOORS[own], f"{module} imports {name}"


def test_no_import_cycle() -> None:
    left = {name: imported(file, deep=False) & MODULES.keys() for name, file in MODULES.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, f"these import each other: {sorted(left)}"


def test_kernels_and_the_model_need_only_torch_triton_and_numpy() -> None:
    todo = [name_of(file) for file in [*files("kernels"), *(ROOT / path for path in PORTABLE)]]
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


def test_no_long_files() -> None:
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text("utf-8").splitlines())
        for file in files(*FLOORS, *OUTSIDE)
    }
    assert len(lines) > 30
    assert not {file: count for file, count in lines.items() if count > 450}


def test_four_links_make_one_package() -> None:
    links = {path.name: path for path in (ROOT / "lumosx_rt").iterdir() if path.is_symlink()}
    assert sorted(links) == sorted(LINKS)
    for name, link in links.items():
        assert os.readlink(link) == f"../{name}" and link.is_dir()
        assert not (ROOT / name / "__init__.py").exists(), f"a bare `{name}` would shadow others"
