"""Stage machine: what is here, and what this GPU reaches at most: a copy, a large product.

Shares of a roofline elsewhere are of published ceilings; these are the machine's own.
"""

import shutil
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.timing import time_of
from lumosx_rt.reference.backbones import cost as roofline


def cases(bench: Bench) -> Iterator[Case]:
    yield Case("toolchain", "", partial(toolchain, bench.scale))
    yield Case("copy", "", partial(_copy, bench.scale))
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield Case(f"product {name}", "", partial(_product, bench.scale, dtype))


def toolchain(scale: Scale) -> Row:
    """Find what compiling a package needs; the row has failed where something is missing."""
    found: Row = {name: shutil.which(name) for name in ("g++", "nvcc", "nvidia-smi")}
    found["cudnn"] = torch.backends.cudnn.version()
    found["architectures"] = torch.cuda.get_arch_list() if not scale.rehearsal else []
    if not scale.rehearsal:
        from lumosx_rt.backends.torch.toolchain import check_toolchain

        check_toolchain("cuda")
    return found


def _copy(scale: Scale) -> Row:
    """Twice the L2 and more, so that it is memory that is measured."""
    count = (1 << 16) if scale.rehearsal else (1 << 30)
    source = torch.zeros(count, dtype=torch.bfloat16, device=scale.device)
    target = torch.empty_like(source)
    taken = time_of(lambda: target.copy_(source), scale.device)
    return taken | roofline.Work(bytes=4.0 * count).rates(sum(taken["ms"]) / 2)


def _product(scale: Scale, dtype: torch.dtype) -> Row:
    size = 64 if scale.rehearsal else 8192
    a, b = (scale.noise()(size, size, dtype=dtype) for _ in range(2))
    taken = time_of(lambda: a @ b, scale.device)
    return taken | roofline.Work({"half": 2.0 * size**3}).rates(sum(taken["ms"]) / 2)
