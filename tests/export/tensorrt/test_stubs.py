"""What we call on TensorRT, against the type stubs of both real modules.

Our files take the module as a parameter of type Any, which hides mistakes. Here `trt` becomes the
module itself, what it made gets its type, and mypy looks at the result; flags that are given by
name are looked up.
"""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lumosx_rt.export.tensorrt.variants import CLASSIC, RTX
from tests.export.tensorrt.stubbed import MODULES

ROOT = Path(__file__).parents[3]
pytest.importorskip("pybind11_stubgen")
pytest.importorskip("tensorrt_rtx")
if find_spec("tensorrt_bindings") is None:
    pytest.skip("the bindings are not installed", allow_module_level=True)

SHARED = [
    "export/tensorrt/plan.py",
    "export/tensorrt/variants.py",
    "lumosx_rt/backends/tensorrt/run.py",
]
FILES = {
    "tensorrt-rtx": [*SHARED, "lumosx_rt/backends/tensorrt_rtx/run.py"],
    "tensorrt": [*SHARED, "kernels/plugins/tensorrt.py"],
}
# what parameters and attributes of these names are, beside the module itself
TYPES = {
    "builder": "trt.Builder",
    "network": "trt.INetworkDefinition",
    "config": "trt.IBuilderConfig",
    "plan": "trt.IHostMemory",
}
# words of remarks that are right and harmless; each must be made, or it is struck off here
HARMLESS = [
    '"__version__"',  # of the package, not of the C++ module in it
    'incompatible type "Dims"; expected "Iterable',  # it is a sequence, the stub does not say so
    '"memoryview" has incompatible type "IHostMemory"',  # nor that this is a buffer
    'incompatible type "tuple[()]"; expected "Dims"',  # pybind11 converts
    '"phase_start" is incompatible', '"step_complete" is incompatible',  # int, not all SupportsInt
]  # fmt: skip
KNOWN = {
    "tensorrt-rtx": HARMLESS,
    "tensorrt": [
        *HARMLESS,
        # RTX's own, and asked only where there are targets
        '"ComputeCapability"', '"num_compute_capabilities"', '"set_compute_capability"',
        # annotations that TensorRT's plugin module reads while running
        "is not valid as a type", "Desc? has no attribute",
    ],
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["tensorrt", pytest.param("tensorrt-rtx", marks=pytest.mark.slow)],
)
def stubs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(backend, folder): the stubs of one of the two, and the mypy remarks of files beside them."""
    backend, folder = request.param, tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "tests.export.tensorrt.stubbed", backend, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return backend, folder


class Binding(ast.NodeTransformer):
    """Makes `trt` the module, and gives what it made its type."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        if node.arg == "trt":
            return ast.arg("_trt", node.annotation)
        if node.arg in TYPES and node.annotation and ast.unparse(node.annotation) == "Any":
            return ast.arg(node.arg, ast.parse(TYPES[node.arg], mode="eval").body)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node) == "self._trt":
            return ast.Name("trt" if isinstance(node.ctx, ast.Load) else "_", node.ctx)
        return node


def bound(source: str, module: str) -> str:
    """A file of ours with `trt` bound to a module."""
    tree = Binding().visit(ast.parse(source))
    tree.body.insert(1, ast.parse(f"import {module} as trt").body[0])  # after the docstring
    return ast.unparse(ast.fix_missing_locations(tree))


def remarks(backend: str, folder: Path, sources: list[str]) -> list[str]:
    """What mypy says of files that use the stubs in `folder`; all other imports are unknown."""
    files = [folder / f"own{i}.py" for i in range(len(sources))]
    for file, source in zip(files, sources, strict=True):
        file.write_text(bound(source, MODULES[backend]))
    (stub,) = folder.glob("*/*.pyi")
    options = "--config-file= --follow-imports=skip --explicit-package-bases --check-untyped-defs "
    options += "--ignore-missing-imports --no-strict-optional --cache-dir cache"
    command = [sys.executable, "-m", "mypy", *options.split(), str(stub), *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if re.match(r"\S*own\d+\.py:.*error", line)]


def test_what_we_call_exists_and_takes_what_we_give(stubs) -> None:
    backend, folder = stubs
    sources = [(ROOT / name).read_text() for name in FILES[backend]]
    found = remarks(backend, folder, sources)
    known = KNOWN[backend]
    strange = [line for line in found if not any(words in line for words in known)]
    assert strange == []
    assert all(any(words in line for line in found) for words in known), found


MISTAKES = {
    "builder.create_optimization_profile()": "builder.create_optimisation_profile()",
    "parser.parse_from_file(str(graph))": "parser.parse_from_file(graph)",
    "config.progress_monitor = monitor": "config.progress_monitors = monitor",
    "network.get_layer(i)": "network.get_layers(i)",
    "trt.LayerType.SOFTMAX": "trt.LayerType.SOFTMAXES",
}


def test_mistakes_are_seen(stubs) -> None:
    """Control: one wrong name or type at a time, all at once."""
    backend, folder = stubs
    source = (ROOT / SHARED[0]).read_text()
    right = len(remarks(backend, folder, [source]))
    for old, new in MISTAKES.items():
        assert old in source
        source = source.replace(old, new, 1)
    found = remarks(backend, folder, [source])
    assert len(found) >= right + len(MISTAKES), found


def test_flags_by_name_exist(stubs) -> None:
    backend, folder = stubs
    dialect = {"tensorrt-rtx": RTX, "tensorrt": CLASSIC}[backend]
    (stub,) = folder.glob("*/*.pyi")
    members = members_of(ast.parse(stub.read_text()))
    assert set(dialect.creation_flags) <= members["NetworkDefinitionCreationFlag"]
    assert set(dialect.parser_flags) <= members["OnnxParserFlag"]
    assert set(dialect.without) <= members["BuilderFlag"]
    assert not {"NO_SUCH"} & members["BuilderFlag"] and len(members["BuilderFlag"]) > 5


def members_of(tree: ast.Module) -> dict[str, set[str]]:
    """The annotated names of every class."""
    return {
        node.name: {
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
