#!/usr/bin/env bash
# Engines of the backend tensorrt on this machine's GPU: built, verified and timed, beside those of
# the backend torch, which has the same kernels.
#
#     benchmarks/gpu/tensorrt.sh [--dry-run] [FOLDER]
#
# Writes engines and times (JSON) into FOLDER [out/tensorrt]. A build compares its plan with the
# reference before it is kept. --dry-run prints the commands and needs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false
out=out/tensorrt
for word in "$@"; do
    case $word in
        --dry-run) dry_run=true ;;
        -*) echo "gpu_tensorrt.sh: got '$word', accepted are --dry-run and a folder" >&2; exit 2 ;;
        *) out=$word ;;
    esac
done

refuse() {
    echo "gpu_tensorrt.sh: $1" >&2
    exit 1
}

# needed WHAT REMEDY COMMAND...: ends the script where the command fails
needed() {
    local what=$1 remedy=$2
    shift 2
    "$@" > /dev/null 2>&1 || refuse "$what; $remedy"
}

run() {
    printf '%q ' "$@"
    printf '\n'
    $dry_run || "$@"
}

python=${PYTHON:-python}
if ! $dry_run; then
    needed "there is no lumosx-rt here" "pip install -e '.[cuda,tensorrt]'" lumosx-rt --version
    needed "torch finds no GPU" "install the NVIDIA driver and a torch with CUDA" \
        "$python" -c 'import torch; assert torch.cuda.is_available()'
    needed "TensorRT cannot be loaded" "pip install tensorrt" \
        "$python" -c 'import tensorrt, tensorrt.plugin; assert tensorrt.Builder(tensorrt.Logger())'
    needed "Triton cannot be loaded" "pip install triton" "$python" -c 'import triton'
    needed "there is no C++ compiler, which the backend torch needs" "apt install g++" \
        "${CXX:-g++}" --version
    needed "no kernels for this GPU" "they exist for compute capability 8.0 and later" \
        "$python" -c 'import torch; from lumosx_rt.kernels.tiles import architecture as a; a(torch.cuda.get_device_capability())'
    mkdir -p "$out"
    free=$(df -Pk "$out" | awk 'NR == 2 {print $4}')
    [ "$free" -ge $((40 << 20)) ] || refuse "$out has $((free >> 20)) GiB free; 40 GiB are needed"
fi

for preset in tiny 1.3b; do
    layouts=(5x8x18+0+- 5x8x18+2+3.3)
    [ $preset = tiny ] || layouts=(21x30x52+0+- 21x30x52+1+4 21x30x52+3+4.4.4)
    for backend in tensorrt torch; do
        engine=$out/$preset-$backend
        run lumosx-rt build --preset $preset --init random --backend $backend --precision bf16 -o "$engine"
        # random weights of full size come without the encoders that verify needs
        [ $preset != tiny ] || run lumosx-rt verify "$engine"
        for layout in "${layouts[@]}"; do
            run "$python" -m benchmarks.gpu.time_engine "$engine" --layout "$layout" -o "$engine.$layout.json"
        done
    done
done
$dry_run || echo "times: $out/*.json"
