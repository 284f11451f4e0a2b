# The README's commands. `make demo` and `make test` set up what they need, once.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process for each core, with a thread each: more threads only wait for each other.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 8

.PHONY: demo test test-lowest check sanitize format bench clean

demo: $(READY)
	$(BIN)/ditprune demo -o demo

test: $(READY)
	$(PYTEST)

# The same with the lowest versions that pyproject.toml allows. torch 2.6.0 from PyPI brings CUDA
# (4 GB); numpy 2.0.0 needs Python 3.11 or 3.12: make test-lowest PYTHON=python3.11
test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ruff check --select F821 --config "lint.ignore=[]" bench examples tests # mypy reads src only
	$(BIN)/mypy
	$(PYTEST)

# The kernel's tests with every access and every arithmetic operation checked.
sanitize: $(READY)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 CXX=$(CXX) \
	DITPRUNE_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1" \
	$(BIN)/python -m pytest -p no:cacheprovider tests/runtime/test_multiply.py \
	  tests/runtime/test_pairs.py tests/runtime/test_fused_gelu.py \
	  -k "not denoiser and not compiled"

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python bench/selection.py
	$(BIN)/python bench/calibration.py
	$(BIN)/python bench/kernel.py

clean:
	rm -rf $(VENV) .venv-lowest demo

# constraints.txt pins the development environment; torch 2.13.0 is a small CPU build there.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	# These name torchvision among their needs, whose wheel belongs to another build of torch.
	$(BIN)/python -m pip install --quiet --no-deps --constraint $(CONSTRAINTS) \
	  dit-ml smalldiffusion timm
	touch $(READY)
