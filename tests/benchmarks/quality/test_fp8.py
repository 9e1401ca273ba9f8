"""The verdict of benchmarks/quality/fp8.py, and what it measures latents by."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.quality import fp8 as fp8_quality


def difference(**changes):
    fine = {"value": 0.0, "low": -0.02, "high": 0.02}
    rates = {"identity": fine, "binding": fine | changes, "motion": {"value": -1, "low": -1}}
    return {"groups": {"all": rates}}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [({}, True), ({"value": -0.011}, False), ({"low": -0.031}, False), ({"value": 0.5}, True)],
)
def test_both_the_estimate_and_its_lower_end_are_held_to(changes, verdict):
    assert fp8_quality.passed(difference(**changes)) is verdict


def test_latents_are_compared_scene_by_scene(tmp_path):
    told = [SimpleNamespace(name=f"s{n}", people=[0] * n) for n in (1, 2)]
    for one in told:
        for name, off in (("fp32", 0.0), ("fp8", 0.1 * len(one.people))):
            file = tmp_path / name / "latents" / f"{one.name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.full((2, 3), 1.0 + off, np.float32))
    found = fp8_quality.latent_sqnr(tmp_path, "fp8", told)
    wanted = {"1": 20.0, "2": 10 * np.log10(25), "all": 10 * np.log10(2 / 0.05)}
    assert found == pytest.approx(wanted, abs=1e-4)
