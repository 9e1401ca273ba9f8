"""The two files of pins: one for a CPU, one for a GPU, apart by what torch's CUDA build demands."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU, GPU = ROOT / "constraints.txt", ROOT / "constraints-gpu.txt"
DEMANDED = {"triton": "3.7.1"}  # of torch 2.13.0 with CUDA; the gate of kernels is passed on it


def pins(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines), "a package is pinned twice"
    return found


def test_they_differ_where_torch_demands_it_and_nowhere_else() -> None:
    cpu, gpu = pins(CPU), pins(GPU)
    assert {name: gpu[name] for name in gpu if cpu.get(name) != gpu[name]} == DEMANDED
    assert cpu.keys() == gpu.keys() and gpu["torch"] == "2.13.0"
