# Runs the numeric tests once under each limit that makes torch compute as another processor would.
# What does not start here, for want of the instructions, is left out by name.
#     BIN  where python and pytest are; arguments go to pytest
limits="ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"
starts="import torch as t; x = t.randn(1, 8, 32, 32); t.nn.Conv2d(8, 8, 3)(x).exp() @ t.ones(30, 4)"
folders="tests/helpers tests/reference tests/kernels tests/calibration tests/export"
# no float32 that torch computes in these, but minutes
without="compile_gate or plugin or tensorrt or stubs or golden_exports or hostile or world or test_scene"
BIN=${BIN:-.venv/bin}
export OMP_NUM_THREADS=1
failed="" left=""
for limit in $limits; do
    if ! env "$limit" "$BIN/python" -c "$starts" 2>/dev/null; then
        left="$left $limit"
        continue
    fi
    echo "== $limit"
    env "$limit" "$BIN/pytest" -q -n 2 --dist loadscope --no-loadscope-reorder $folders \
        -m "not slow and not gpu and not hopper" -k "not ($without)" "$@" || failed="$failed $limit"
done
[ -z "$left" ] || echo "left out, this processor cannot:$left"
[ -z "$failed" ] || { echo "failed under:$failed"; exit 1; }
