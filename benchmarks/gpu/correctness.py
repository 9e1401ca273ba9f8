"""Stage correctness: every operation against float64, streams in different groups, two seeds each.

A row has the error of the kernel, that of plain torch in the same data type, and their ratio, which
passes up to 2. In e4m3, plain torch works on keys and values (rows, operands) quantized alike.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import attention, cross, products, rows
from benchmarks.gpu.book import Row
from benchmarks.gpu.cases import Bench, Case
from benchmarks.gpu.problem import MOST, Problem
from benchmarks.gpu.scale import layouts_of

SEEDS = 2
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cases(bench: Bench) -> Iterator[Case]:
    scale = bench.scale
    for keys in scale.streams:
        first = keys[0]
        shape = f"{' & '.join(keys)} x{SEEDS}"
        for op, dtype, way, build, arguments in _checks(keys):
            run = partial(_judge, bench, op, dtype, way, build, arguments)
            yield Case(f"{op} {dtype}", shape, run)
        for layer in products.layers(scale.config):
            given = (first, layer, torch.bfloat16)
            way, build = "linear_fp8", products.quantized_problem
            run = partial(_judge, bench, way, "e4m3", way, build, given)
            yield Case(f"linear_fp8 {layer} e4m3", first, run)


def _checks(
    keys: tuple[str, ...],
) -> Iterator[tuple[str, str, str, Callable[..., Problem], tuple[Any, ...]]]:
    """Operation, data type, the way that is judged, its problem, and what that is built from."""
    for name, dtype in DTYPES.items():
        given = (keys, SEEDS, dtype)
        yield "relational_attention", name, "triton", attention.problem, given
        if name == "bf16":
            yield "relational_attention", "e4m3", "triton e4m3", attention.problem, given
            yield "quantize_kv", "e4m3", "quantize_kv", attention.quantization_problem, given
        yield "relational_cross_attention", name, "triton", cross.problem, given
        if layouts_of(keys)[0].references:
            yield "bias_table", name, "triton", cross.table_problem, (keys, dtype)
        for op, build in rows.PROBLEMS.items():
            quantized = "quantize" in op
            if name == "bf16" or not quantized:
                yield op, "e4m3" if quantized else name, f"{op}: triton", build, given


def _judge(
    bench: Bench,
    op: str,
    dtype: str,
    way: str,
    build: Callable[..., Problem],
    arguments: tuple[Any, ...],
) -> Row:
    problem: Problem = bench.latest(build, bench.scale, *arguments)
    found = problem.judged(way)
    return {"op": op, "dtype": dtype} | found | {"pass": found["ratio"] <= MOST}
