# make demo | test | kernels | gpu-check | bench | lint | docs | wheel: each sets up what it needs in .venv first. make clean removes it all.
# TORCH chooses the torch that is installed there.
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test kernels bench gpu-check lint docs wheel clean
demo: .venv/installed
	$(BIN)/python -m demo

test: .venv/installed
	$(BIN)/python -m pytest

# Every CUDA kernel, executed on the CPU in several orders of threads and under sanitizers; then what nvcc made of them.
kernels: .venv/installed
	$(BIN)/python tests/emulation/check.py
	$(BIN)/python tests/emulation/table.py

bench: .venv/installed
	$(BIN)/python -m mfac.bench

# For a machine with a GPU and a CUDA toolkit: builds, tests and measures there, in eight minutes at most. Nothing is
# installed but mfac itself: torch and pytest are those of PYTHON where it is given, otherwise of .venv where there is one.
gpu-check:
	$(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON)) -m bench.gpu_check

lint: .venv/lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/typos

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# As `pip install .` does it: in isolation, without CUDA; then loaded from where pip put it.
wheel: .venv/installed
	rm -rf build/wheel && MFAC_CUDA=0 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel/installed build/wheel/mfac-*.whl
	cd build/wheel/installed && ../../../$(BIN)/python -c "import mfac; print(mfac.__file__, mfac.build_info())"

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The extension is built in place (an editable install) and again whenever its sources change.
.venv/installed: .venv/bin/python pyproject.toml setup.py $(shell find csrc -type f)
	$(BIN)/python -m pip install --quiet --upgrade "setuptools>=77" ninja "pybind11>=2.13" "numpy" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test,demo]"
	touch $@

.venv/lint: .venv/installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[lint]"
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv build *.egg-info mfac/_C*.so demo/out site .pytest_cache .hypothesis .mypy_cache .ruff_cache
