"""Dependencies: declared is what is imported, and one error names what is absent."""

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lumosx_rt as rt
from lumosx_rt.backends.table import compiler_of
from lumosx_rt.builder.calibrate import calibrate
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.packages import EXTRAS, require
from lumosx_rt.reference.sampling.shortcuts import Lossy
from lumosx_rt.reference.training import loop

ROOT = Path(__file__).parents[2]
FOLDERS = ("reference", "kernels", "export", "calibration", "lumosx_rt")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CALLED = {"PIL": "pillow", "modelopt": "nvidia-modelopt", "cuda": "cuda-python"}
"""Modules that are called otherwise than what installs them."""
UNIMPORTED = {
    "onnxruntime-gpu": "is imported as onnxruntime",
}


def declared(extra: str | None = None) -> set[str]:
    """Names that pyproject.toml lists: the dependencies, or those of an extra."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def installed_by(module: str) -> str:
    return canonicalize_name(CALLED.get(module, module))


@cache
def imported() -> dict[str, set[str]]:
    """What of others is imported anywhere in the package -> files that do."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [str(node.module)]
                for name in {name.split(".")[0] for name in names}:
                    if name != "lumosx_rt" and name not in sys.stdlib_module_names:
                        found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return found


def refusal(function, *args, **options) -> str:
    with pytest.raises(LumosXError) as raised:
        function(*args, **options)
    return str(raised.value)


@pytest.fixture
def without(monkeypatch):
    """`without(module, ...)`: these are not installed."""

    def hide(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_what_is_imported_is_declared() -> None:
    assert {"torch", "onnx", "PIL", "accelerate"} <= set(imported())
    for module, files in imported().items():
        names = declared(EXTRAS[module]) if module in EXTRAS else declared()
        assert installed_by(module) in names, f"{module}: {sorted(files)}"


def test_what_is_declared_is_imported() -> None:
    used = set(map(installed_by, imported())) | set(UNIMPORTED)
    extras = set(PROJECT["optional-dependencies"]) - {"dev"}
    assert extras == set(EXTRAS.values())
    for extra in (None, *extras):
        assert declared(extra) <= used, extra
    assert not set(UNIMPORTED) & set(map(installed_by, imported()))


def test_nothing_that_is_installed_is_absent() -> None:
    require("a test", "torch", "numpy")


def test_one_error_names_all_that_is_absent_and_its_extras(without) -> None:
    without("onnx", "onnxscript", "onnxruntime")
    said = refusal(require, "building", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
    assert said.startswith("building needs onnx, onnxscript, onnxruntime, not installed here")
    assert "pip install 'lumosx-rt[build,cpu]'" in said and "[cuda]" in said


@pytest.mark.parametrize("module", ["onnx", "onnx_ir", "onnxscript", "onnxruntime"])
def test_building_says_what_is_absent(module: str, without, micro_bundle, tmp_path) -> None:
    without(module)
    said = refusal(rt.build, micro_bundle, tmp_path / "engine")
    assert f"needs {module}, not installed here" in said
    assert f"lumosx-rt[{EXTRAS[module]}]" in said and not list(tmp_path.iterdir())


def test_scales_of_random_weights_need_modelopt(without) -> None:
    without("modelopt")
    assert "lumosx-rt[build]" in refusal(compiler_of, "auto", {"precision": "fp8"}, random=True)
    compiler_of("auto", {"precision": "fp32"}, random=True)


def test_calibrating_says_what_is_absent(without, micro_bundle, tmp_path) -> None:
    without("modelopt")
    said = refusal(calibrate, micro_bundle, tmp_path / "calibration.json")
    assert "lumosx-rt[build]" in said and not list(tmp_path.iterdir())


def test_loading_says_what_is_absent(without, micro) -> None:
    without("onnxruntime")
    said = refusal(rt.load, micro.folder)
    assert "lumosx-rt[cpu]" in said and "[cuda] in place of [cpu]" in said


def test_only_shortcuts_need_onnx_to_run(without, micro) -> None:
    without("onnx", "onnx_ir", "onnxscript")
    rt.load(micro.folder, provider="cpu")
    said = refusal(rt.load, micro.folder, lossy=Lossy(keys_every=2))
    assert "shortcuts" in said and "lumosx-rt[build]" in said


def test_training_by_several_processes_says_what_is_absent(without, monkeypatch) -> None:
    without("accelerate")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LumosXError, match=r"lumosx-rt\[train\]"), loop._processes("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with loop._processes("cpu") as crew:
        assert crew.is_main
