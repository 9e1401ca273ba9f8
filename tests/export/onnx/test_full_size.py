"""The full-size model exports within the memory it may have, and is still the same model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def measured(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.full_size.{name}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_full_size_export_fits_in_memory_and_agrees() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.full_size.build"], stdout=subprocess.PIPE, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["peak_memory_gib"] <= 20
    assert facts["attention_operators"] == 60  # 30 blocks: video rectangle, video over the text
    assert max(case["relative_error"] for case in facts["parity"]) <= 1e-4


@pytest.mark.slow
def test_full_size_export_with_opaque_nodes_fits_in_memory() -> None:
    facts = measured("plugin")
    assert facts["peak_memory_gib"] <= 20
    kinds = ("RelationalAttention", "RelationalBias", "RelationalCrossAttention")
    nodes = dict.fromkeys(kinds, 29) | {"VideoAttention": 1, "QkNormRope": 4 * 30 - 1}
    assert facts["opaque_nodes"] == nodes
