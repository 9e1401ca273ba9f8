PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test test-fast test-processors test-slow lint docs dist bench bench-gpu nullgpu

install: $(INSTALLED)

# torch is pinned to its CPU build by the constraints; a looser request pulls gigabytes of CUDA
$(INSTALLED): pyproject.toml constraints.txt lumosx_rt/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Personalized videos out of prompt folders, by an engine checked against the reference, and judged
demo: install
	$(BIN)/lumosx-rt build checkpoints/tiny -o engines/tiny
	$(BIN)/lumosx-rt verify engines/tiny samples/drawn/two
	$(BIN)/lumosx-rt generate engines/tiny samples/drawn -o out --force
	$(BIN)/lumosx-rt bench engines/tiny --list ci -o out/binding
	$(BIN)/lumosx-rt inspect samples/drawn/two --frames 9 --height 64 --width 144 \
		--layout-png out/two-layout.png > out/two-layout.txt

# Compiled once: what is imported is kept, also by the processes that tests start
test: install lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadscope --no-loadscope-reorder \
		-m "not slow and not gpu and not hopper"

# What is quick: layouts, scenes, manifests, the order of rooms, documentation, help; under a minute
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow" tests/test_architecture.py tests/docs \
		tests/reference/mechanisms/lumosx/test_layout.py tests/reference/scenes/test_scene.py \
		tests/reference/scenes/test_folder.py tests/reference/scenes/test_words.py \
		tests/lumosx_rt/artifact/test_manifest.py

# The numeric tests as other processors compute: torch's own loops, and oneDNN's, held to less
test-processors: install
	BIN=$(BIN) sh tests/helpers/processors.sh

# Full size: minutes and gigabytes
test-slow: install
	$(BIN)/pytest -q -s -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site in out/site; its generated pages are rewritten first
docs: install
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel, in dist/; files of an earlier build would end in it
dist: install
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w dist .

# Speed on this CPU, one thread; the tables of README.md and docs/ follow
bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.side_by_side
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.latency
	$(BIN)/python -m benchmarks.tables

# On a machine with a GPU; needs torch and triton, and nothing of this package installed.
# CALL is works, attention, headline, rest, package or products: ten minutes at most each
CALL ?= all
bench-gpu:
	$(PYTHON) -m benchmarks.gpu.run $(CALL) $(if $(OUT),-o $(OUT))

# All of the GPU path but values, on a GPU that launches nothing: torch's CUDA build, 6 GB of disk
TORCH ?= 2.13.0
nullgpu: install
	PYTHON=$(PYTHON) bash tests/gpu/nullgpu/build.sh $(TORCH)
	$(BIN)/python -m tests.gpu.nullgpu.rehearse $(TORCH) -o benchmarks/results/nullgpu.json
