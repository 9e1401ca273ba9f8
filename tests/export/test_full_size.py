"""The full-size model exports within the memory it may have, and is still the same model."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_size_build.py"


@pytest.mark.slow
def test_full_size_export_fits_in_memory_and_agrees(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("full_size_build", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    facts = script.full_size_build(tmp_path)
    assert facts["peak_memory_gib"] <= 20
    assert facts["attention_operators"] == 60  # 30 blocks: video rectangle, video over the text
    assert max(case["relative_error"] for case in facts["parity"]) <= 1e-4
