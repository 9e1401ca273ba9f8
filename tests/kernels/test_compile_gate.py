"""Everything that is claimed to work compiles for its architecture, without spills, and fits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.compile_gate import claims
from lumosx_rt.kernels.tiles import ARCHITECTURES

ROOT = Path(__file__).parents[2]


def gate(tmp_path: Path, *arguments: str, tiles: dict | None = None) -> tuple[int, list[dict]]:
    """The gate in a process without Triton's interpreter; its exit status and rows."""
    out = tmp_path / "gate.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_gate", "-o", str(out), *arguments]
    if tiles is not None:
        (tmp_path / "tiles.json").write_text(json.dumps(tiles))
        patched = (
            "import runpy, sys, pathlib; import lumosx_rt.kernels.tiles as t; "
            f"t.read_from(pathlib.Path({str(tmp_path / 'tiles.json')!r})); "
            f"sys.argv = {command[2:]!r}; runpy.run_module(sys.argv[0], run_name='__main__')"
        )
        command = [sys.executable, "-c", patched]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text())["rows"]


@pytest.mark.parametrize(
    "sm", [pytest.param(sm, marks=[] if sm == 90 else pytest.mark.slow) for sm in ARCHITECTURES]
)
@pytest.mark.parametrize(
    ("which", "least"),
    [(["--released"], 7), pytest.param([], 30, marks=pytest.mark.slow)],
    ids=["at the released sizes", "everything"],
)
def test_what_is_claimed_compiles(sm: int, which: list[str], least: int, tmp_path: Path) -> None:
    status, rows = gate(tmp_path, "--sm", str(sm), *which)
    assert len(rows) >= least
    failed = [row for row in rows if "problem" in row]
    assert status == 0 and not failed, failed
    kernels = {row["kernel"] for row in rows}
    assert {"relational_attention", "relational_cross_attention", "qk_norm_rope"} <= kernels
    assert ("quantize_kv" in kernels) == (sm >= 89)
    if sm == 90:
        attention = [row for row in rows if row["kernel"] == "relational_attention"]
        assert any(row["e4m3_products"] for row in attention)


@pytest.mark.slow
def test_a_configuration_that_spills_fails(tmp_path: Path) -> None:
    """Control: four warps are too few for tiles of 128 by 128."""
    tiles = json.loads((ROOT / "kernels" / "tiles.json").read_text())
    tiles["sm_90"]["relational_attention/half/128"] |= {"block_n": 128, "num_warps": 4}
    only = ("--sm", "90", "--only", "bfloat16, heads of 128")
    status, rows = gate(tmp_path, *only, tiles=tiles)
    problems = {row["kernel"]: row.get("problem", "") for row in rows}
    assert status == 1 and "spills" in problems["relational_attention"]
    assert not problems["bias_table"]


@pytest.mark.parametrize("triton", ["3.6.0", "3.7.1", "3.9.0"])
def test_it_was_passed_on_every_triton_that_torch_demands(triton: str) -> None:
    """3.6.0 and 3.7.1 come with the CUDA builds of torch 2.11 and 2.13; kernels are as recorded."""
    name = "compile_gate.json" if triton == "3.9.0" else f"compile_gate_triton_{triton}.json"
    record = json.loads((ROOT / "benchmarks/results" / name).read_text())
    assert record["triton"] == triton
    found = {(row["kernel"], row["what"], row["sm"]) for row in record["rows"]}
    assert found == {(k.name, words, sm) for sm in ARCHITECTURES for words, k in claims(sm)}
    assert not [row for row in record["rows"] if "problem" in row]
