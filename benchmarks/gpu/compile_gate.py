"""Every kernel that is claimed to work, compiled for every architecture; no GPU needed.

    python -m benchmarks.gpu.compile_gate -o benchmarks/results/compile_gate.json

One row for a kernel, its types and an architecture: registers and spilled bytes of a thread,
shared memory, matrix instructions. A row fails that spills, does not fit into shared memory, or
(half precision and e4m3 on sm_90) holds no warpgroup product. Exit status 1 where one does.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from lumosx_rt.kernels import signatures as of
from lumosx_rt.kernels.compile import SHARED_MEMORY_BYTES, Specialization, compile_for
from lumosx_rt.kernels.fused import supports
from lumosx_rt.kernels.tiles import ARCHITECTURES, RowTiles, attention_settings, settings
from lumosx_rt.reference.files import write_atomically

HALF = (torch.bfloat16, torch.float16)
E4M3 = torch.float8_e4m3fn
HEADS = {128: 12, 32: 6}  # by head size: 1.3b, and the small checkpoint
WIDTHS = (1536, 5120)  # of 1.3b and 14b
FFN_WIDTHS = (8960, 13824)
RELEASED = re.compile("bfloat16.* (128|1536|8960)(,|$)")
Row = dict[str, Any]


def claims(sm: int) -> Iterator[tuple[str, Specialization]]:
    """A description and a kernel for everything `supports` says runs on an architecture."""
    for dtype in (*HALF, torch.float32):
        kind = _name(dtype)
        for head_dim, heads in HEADS.items():
            op = "relational_attention"
            if supports(op, sm, dtype, head_dim):
                tiles = attention_settings(sm, op, kind, head_dim)
                yield (
                    f"{kind}, heads of {head_dim}",
                    of.of_relational_attention(dtype, heads, head_dim, tiles),
                )
            op = "relational_cross_attention"
            if supports(op, sm, dtype, head_dim):
                tiles = attention_settings(sm, op, kind, head_dim)
                for biased in (True, False):
                    words = "references" if biased else "video"
                    yield (
                        f"{kind}, heads of {head_dim}, {words}",
                        of.of_relational_cross_attention(
                            dtype, heads, head_dim, tiles, biased=biased
                        ),
                    )
                yield f"{kind}, heads of {head_dim}", of.of_bias_table(dtype, heads, head_dim)
            if supports("qk_norm_rope", sm, dtype):
                rows = RowTiles(**settings(sm, "qk_norm_rope"))
                for rope in (True, False):
                    words = "norm and rotation" if rope else "norm"
                    yield (
                        f"{kind}, heads of {head_dim}, {words}",
                        of.of_qk_norm_rope(dtype, heads, head_dim, rows, rope=rope),
                    )
        for dim in WIDTHS:
            if supports("norm_modulate", sm, dtype):
                rows = RowTiles(**settings(sm, "norm_modulate"))
                yield f"{kind}, width {dim}", of.of_norm_modulate(dtype, dim, rows)
    for dtype in HALF:
        kind = _name(dtype)
        for head_dim, heads in HEADS.items():
            if supports("relational_attention", sm, E4M3, head_dim):
                tiles = attention_settings(sm, "relational_attention", "e4m3", head_dim)
                yield (
                    f"e4m3 from {kind}, heads of {head_dim}",
                    of.of_relational_attention(dtype, heads, head_dim, tiles, e4m3=True),
                )
                words = f"{kind} to e4m3, heads of {head_dim}"
                yield words, of.of_kv_statistics(dtype, heads, head_dim)
                yield words, of.of_quantize_kv(dtype, heads, head_dim)
        for dim in WIDTHS:
            if supports("norm_modulate", sm, E4M3):
                rows = RowTiles(**settings(sm, "norm_modulate"))
                words = f"{kind} to e4m3, width {dim}"
                yield words, of.of_norm_modulate(dtype, dim, rows, quantize=True)
        for dim in FFN_WIDTHS:
            if supports("linear_fp8", sm, E4M3):
                rows = RowTiles(**settings(sm, "gelu_quantize"))
                yield f"{kind} to e4m3, width {dim}", of.of_gelu_quantize(dtype, dim, rows)


def row_of(words: str, kernel: Specialization, sm: int) -> Row:
    """Compile one kernel for one architecture and say what came of it."""
    row: Row = {"kernel": kernel.name, "what": words, "sm": sm}
    try:
        code = compile_for(kernel, sm)
    except Exception as error:  # compilers raise what they like
        reason = next(line for line in reversed(str(error).splitlines()) if line.strip(" ^"))
        return row | {"problem": f"does not compile: {reason}"}
    row |= {
        "registers": code.registers,
        "spill_bytes": code.spill_bytes,
        "shared_bytes": code.shared_bytes,
        "warps": code.num_warps,
        "matrix_instructions": code.matrix_instructions,
        "e4m3_products": len(re.findall(r"mma[\w.:]*\.e4m3", code.ptx)),
    }
    problem = None
    if code.spill_bytes:
        problem = f"spills {code.spill_bytes} bytes"
    elif code.shared_bytes > SHARED_MEMORY_BYTES[sm]:
        problem = f"needs {code.shared_bytes} of {SHARED_MEMORY_BYTES[sm]} bytes of shared memory"
    elif kernel.name.startswith("relational") and sm == 90 and "float32" not in words:
        if "wgmma.mma_async" not in code.matrix_instructions:
            problem = "no warpgroup products"
        elif "e4m3" in words and not row["e4m3_products"]:
            problem = "no warpgroup products in e4m3"
    return row | ({"problem": problem} if problem else {})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/compile_gate.json"))
    parser.add_argument("--sm", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--only", help="just what has this description, e.g. 'float32, width 1536'")
    parser.add_argument("--released", action="store_true", help="just bfloat16 at 1.3b's sizes")
    given = parser.parse_args(arguments)
    rows = []
    for sm in given.sm:
        for words, kernel in claims(sm):
            if given.only not in (None, words) or (given.released and not RELEASED.search(words)):
                continue
            rows.append(row_of(words, kernel, sm))
            print(line(rows[-1]), flush=True)
    record = {"triton": triton.__version__, "torch": torch.__version__, "rows": rows}
    write_atomically(given.out, json.dumps(record, indent=1) + "\n")
    failed = sum("problem" in row for row in rows)
    print(f"{len(rows)} kernels, {failed} failed: {given.out}")
    return 1 if failed else 0


def line(row: Row) -> str:
    """A row as a line of text."""
    start = f"sm_{row['sm']:<4} {row['kernel']:<27} {row['what']:<40}"
    if "registers" not in row:
        return f"{start} {row['problem']}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in row["matrix_instructions"].items())
    return (
        f"{start} {row['registers']:>3} registers {row['shared_bytes'] / 1024:6.1f} KiB shared  "
        f"{kinds} {row.get('problem', '')}"
    ).rstrip()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    raise SystemExit(main())
