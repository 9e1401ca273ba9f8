"""Kernels compiled without a GPU: machine code, PTX, and what the assembler says of them.

A `Specialization` is a kernel with the types of its arguments and its compile-time constants;
`compile_for` compiles it for an architecture. Needs Triton uninterpreted.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lumosx_rt.kernels.numerics import INTERPRETED

SHARED_MEMORY_BYTES = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


@dataclass(frozen=True)
class Specialization:
    """A kernel, ready to be compiled."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    """Of every run-time argument, in Triton's words: "*bf16", "i32", "fp32"."""
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    aligned: frozenset[str] = field(default_factory=frozenset)
    """Integer arguments known to be multiples of 16; pointers always are."""


@dataclass(frozen=True)
class Compiled:
    """Code for one architecture. Registers and spills (its stack) are of a thread."""

    ptx: str
    cubin: bytes
    entry: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int

    @property
    def matrix_instructions(self) -> dict[str, int]:
        """How often each kind of matrix instruction stands in the code."""
        kinds = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
        found = {kind: len(re.findall(rf"\s{re.escape(kind)}\b", self.ptx)) for kind in kinds}
        return {kind: count for kind, count in found.items() if count}


def compile_for(specialization: Specialization, sm: int) -> Compiled:
    """Compile for sm_80, 89, 90, 100 or 120. Raises whatever the compiler raises."""
    if INTERPRETED:
        raise RuntimeError("Triton's interpreter is on (TRITON_INTERPRET); it compiles nothing")
    names = specialization.kernel.arg_names
    signature = {name: specialization.types.get(name, "constexpr") for name in names}
    divisible = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=specialization.kernel,
        signature=signature,
        constexprs=dict(specialization.constants),
        attrs={
            (i,): divisible
            for i, name in enumerate(names)
            if signature[name].startswith("*") or name in specialization.aligned
        },
    )
    options = {"num_warps": specialization.num_warps, "num_stages": specialization.num_stages}
    built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    ptx, cubin = built.asm["ptx"], built.asm["cubin"]
    registers, spills = _resources(cubin)
    (entry,) = re.findall(r"\.entry (\w+)", ptx)
    # warp specialization adds warps to those asked for
    (threads,) = re.findall(r"\.reqntid (\d+)", ptx)
    return Compiled(ptx, cubin, entry, registers, spills, built.metadata.shared, int(threads) // 32)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack (what was spilled) of a thread, read off the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return int(registers), int(stack)
