"""How long a function takes: medians with a cold L2 cache on a GPU; by the clock in rehearsals."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

BUDGET_MS = 400  # of running what is measured, for one median
FEWEST, MOST = 5, 50
FLUSH_BYTES = 1 << 30  # twenty times the L2 of an H100; writing it also lets the launches run ahead


def time_of(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Two medians one after the other, and the interquartile spread over both, in ms.

    `run` has been called before, so that everything is compiled.
    """
    if device.type == "cpu":
        rounds = [[_seconds(run) * 1e3] for _ in range(2)]
    else:
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        (estimate,) = _cold_ms(run, flush, 1)
        count = min(MOST, max(FEWEST, round(BUDGET_MS / estimate)))
        _cold_ms(run, flush, 2)
        rounds = [_cold_ms(run, flush, count) for _ in range(2)]
    low, _, high = statistics.quantiles([ms for ran in rounds for ms in ran], n=4)
    return {
        "ms": [round(statistics.median(ran), 5) for ran in rounds],
        "spread_ms": round(high - low, 5),
        "repetitions": len(rounds[0]),
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cold_ms(run: Callable[[], Any], flush: torch.Tensor, count: int) -> list[float]:
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
    for start, stop in events:
        flush.zero_()
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]
