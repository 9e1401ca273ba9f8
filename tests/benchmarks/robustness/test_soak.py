"""benchmarks/robustness/soak.py, briefly: an engine does not grow, and one that does is seen."""

import sys

import numpy as np
import pytest

import lumosx_rt as rt
from benchmarks.robustness import soak

MOST_MIB = 4.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and asks glibc to give back")
def test_memory_grows_only_where_something_is_kept(micro_engine, monkeypatch):
    engine = rt.Engine(micro_engine.folder, micro_engine.manifest, micro_engine.backend, remember=0)
    engine.__dict__["vae"] = micro_engine.vae
    soak.soak(engine, 3, 2, every=3)  # caches of the libraries fill
    found = soak.soak(engine, 12, 2, every=3)
    assert len(found["held_mib"]) == 4 and found["growth_mib"] < MOST_MIB
    assert found["health"]["requests"] == 15 and found["health"]["refused"] == 2
    right, kept = engine.generate, []

    def leaking(*scene, **options):
        kept.append(np.ones(1 << 19))  # 4 MiB
        return right(*scene, **options)

    monkeypatch.setattr(engine, "generate", leaking)
    assert soak.soak(engine, 6, 1, every=3)["growth_mib"] > MOST_MIB
