"""One request in a process of its own, timed from before Python starts.

    python -m lumosx_rt.bench.speed.cold '{"engine": ..., "since": <the caller's monotonic>}'

Prints seconds since then as one line of JSON. Files may are in the page cache.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lumosx_rt.reference.errors import BadInput

LIMIT_S = 3600


def cold_request(
    engine: Path, *, components: Path | None, provider: str, trust: bool, settings: dict[str, Any]
) -> dict[str, Any]:
    """Seconds from start to each point of a first request, and the peak of memory.

    Raises LumosXError where the process fails.
    """
    asked = {
        "engine": str(engine),
        "components": None if components is None else str(components),
        "provider": provider,
        "trust": trust,
        "settings": settings,
        "since": time.monotonic(),
    }
    command = [sys.executable, "-m", "lumosx_rt.bench.speed.cold", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        reason = next(reversed(done.stderr.strip().splitlines()), "no reason given")
        raise BadInput(f"{engine}: the first request in a process of its own failed: {reason}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: str) -> None:
    asked = json.loads(words)
    points: dict[str, float] = {}

    def reached(point: str) -> None:
        points[point] = round(time.monotonic() - asked["since"], 4)

    import torch

    from lumosx_rt.reference.scenes.builtin import builtin_scenes
    from lumosx_rt.runtime.engine import load
    from lumosx_rt.runtime.memory import peak_memory_bytes

    reached("imported")
    engine = load(
        asked["engine"],
        components=asked["components"],
        provider=asked["provider"],
        trust=asked["trust"],
        unverified=True,
    )
    reached("loaded")
    request = engine.prepare(builtin_scenes()[-1], **asked["settings"])
    reached("prepared")
    for state in engine.sample(request):
        if state.step == 1:
            reached("first_step")
    engine.decode(request, state.latents)
    reached("finished")
    facts: dict[str, Any] = {"seconds": points, "peak_memory_bytes": peak_memory_bytes()}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        facts["gpu_memory_in_use_bytes"] = total - free
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
