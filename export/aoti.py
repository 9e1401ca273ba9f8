"""The traced program -> one AOTInductor package (.pt2): compiled code and weights in one archive.

What the compiler leaves on the way is beside the package and is deleted; the code still names
the folder it was compiled in, as compiled code does.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lumosx_rt.export.program import trace
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.wan import LumosX

# Sizes of 0 and 1 are ordinary sizes: no references, one stream, one seed, one frame.
_TRACING = {"backed_size_oblivious": True}
_COMPILING = {
    # what tracing concluded from its example (no axis is 1) would be checked in every call, though
    # nothing rests on it; what does is checked by `check_shapes`, once a request
    "scalar_asserts": False,
    # a Python float that reaches a kernel of ours would be computed with in float64
    "_use_fp64_for_unbacked_floats": False,
    "cpp.dynamic_threads": True,  # torch's own number when it runs, not the one of the build
}


def compile_package(
    model: LumosX, path: Path, *, ops: Ops, report: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Write `path` (.pt2) for the device and dtype of the model; returns facts for the report.

    The package takes `INPUTS` in order, contiguous and on that device, and returns the velocity.
    It does not look at their shapes: `check_shapes` has to.
    """
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _compiler_in(path.parent):
        report("tracing the model")
        program = trace(model, ops)
        report("compiling, which takes minutes for large models")
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=dict(_COMPILING)
        )
    return {"compile_seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _compiler_in(folder: Path) -> Iterator[None]:
    """Inductor with a workplace of its own in `folder`, and its remarks on itself kept quiet."""
    from torch._inductor.utils import fresh_cache
    from torch.fx.experimental import _config as tracing

    remarks = logging.getLogger("torch")
    level = remarks.level
    remarks.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            fresh_cache(dir=str(folder)),
            tracing.patch(_TRACING),  # type: ignore[attr-defined]  # a config module
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.setLevel(level)
