#!/usr/bin/env bash
# Build the null GPU beside torch's CUDA build: out/nullgpu/TORCH, and in it `python`, which runs on it.
#
#   build.sh [TORCH]           2.13.0 (the pinned one) if none is named; 2.11.0 is the oldest allowed
#
# Needs g++, binutils and 6 GB; torch's CUDA wheels and headers come from PyPI by name, on purpose.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
torch=${1:-2.13.0}
out=${NULLGPU:-$root/out/nullgpu}/$torch
mkdir -p "$out/lib" "$out/cuda/include" "$out/cuda/lib64"

if [ ! -e "$out/venv/.installed" ]; then
    "${PYTHON:-python3}" -m venv "$out/venv"
    # the project's pins but for what a CUDA torch pins itself, and numpy as Triton 3.6 interprets
    grep -viE '^(torch|triton|numpy|setuptools|tensorrt|onnxruntime|cuda|nvidia)' "$root/constraints.txt" \
        > "$out/constraints.txt"
    install=("$out/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir)
    # files lying on a machine may be CPU builds of the same version: only the index is asked
    env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null "${install[@]}" -c "$out/constraints.txt" \
        "torch==$torch" 'numpy<2.4' cuda-bindings setuptools psutil pytest hypothesis onnx onnx-ir \
        onnxscript accelerate scipy matplotlib diffusers transformers tokenizers safetensors ftfy \
        pillow av typer rich tqdm
    # what torch's wheels leave out and its packages are compiled with
    env -u PIP_FIND_LINKS PIP_CONFIG_FILE=/dev/null "${install[@]}" --no-deps \
        nvidia-cuda-crt nvidia-cuda-cccl
    touch "$out/venv/.installed"
fi

site=$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for headers in "$site"/nvidia/*/include; do
    cp -rsn "$headers/." "$out/cuda/include/" 2>/dev/null || true
done
compile=(g++ -std=c++17 -O1 -shared -fPIC "-I$out/cuda/include")
"${compile[@]}" "$here/runtime.cpp" -o "$out/runtime.so" -ldl
"$out/venv/bin/python" "$here/stubs.py" "$site/torch/lib" "$out/runtime.so" > "$out/stubs.cpp"
"${compile[@]}" "$here/runtime.cpp" "$out/stubs.cpp" "$here/attention.cpp" -o "$out/libnullgpu.so" -ldl
"${compile[@]}" "$here/driver.cpp" -o "$out/lib/libcuda.so.1" -Wl,-soname,libcuda.so.1 -ldl
ln -sf libcuda.so.1 "$out/lib/libcuda.so"

mkdir -p "$out/site"
cp "$here/sitecustomize.py" "$out/site/"

# one thread of everything: results are the same, and machines are small
cat > "$out/python" <<LAUNCHER
#!/bin/sh
export LD_LIBRARY_PATH="$out/lib" TRITON_LIBCUDA_PATH="$out/lib" LIBRARY_PATH="$out/lib"
export CUDA_HOME="$out/cuda" OMP_NUM_THREADS=\${OMP_NUM_THREADS:-1} TORCHINDUCTOR_COMPILE_THREADS=1
export PYTHONPATH="$root:$out/site" LD_PRELOAD="$out/libnullgpu.so"
exec "$out/venv/bin/python" "\$@"
LAUNCHER
chmod +x "$out/python"
"$out/python" -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.get_device_name())'
