"""Write C++ that answers all else that torch wants of CUDA: it does nothing, and succeeds.

    python stubs.py TORCH_LIB RUNTIME.so > stubs.cpp

TORCH_LIB: the folder of torch's libraries; RUNTIME.so: what is answered already.
"""

import re
import subprocess
import sys
from pathlib import Path

_OURS = re.compile(r"(cuda|__cuda|cublas)[A-Z]\w*")
_REAL = ("__cudaRegister", "__cudaUnregister", "__cudaPushCall", "__cudaPopCall")  # of the loader


def main(libraries: Path, runtime: Path) -> None:
    wanted = {name for path in libraries.glob("*cuda*.so") for name in _symbols(path, "-u")}
    wanted = {name for name in wanted if _OURS.fullmatch(name) and not name.startswith(_REAL)}
    print('extern "C" {')
    for name in sorted(wanted - _symbols(runtime, "--defined-only")):
        print(f"int {name}(...) {{ return 0; }}")
    print("}")


def _symbols(library: Path, which: str) -> set[str]:
    command = ["nm", "-D", which, str(library)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].partition("@")[0] for line in listed.splitlines()}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
