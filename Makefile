# make demo | demo-lm | test | kernels | gpu-check | bench | lint | docs | wheel | figures: each sets up what it
# needs in .venv first. make clean removes it all.
# TORCH chooses the torch that is installed there; FULL=1 is the long demo or demo-lm, QUICK=1 the
# short demo-lm; CUDA=1 a wheel with CUDA.
TORCH ?= torch==2.13.0
PYTHON ?= python3
FULL ?=
QUICK ?=
CUDA ?= 0
BIN := .venv/bin
REQUIREMENTS := from setuptools.config.pyprojecttoml import read_configuration as read; import sys; \
  print(*read("pyproject.toml", expand=False)["project"]["optional-dependencies"][sys.argv[1]], sep="\n")

.PHONY: demo demo-lm test kernels bench gpu-check lint docs wheel figures clean
demo: .venv/installed
	$(BIN)/python -m demo $(if $(FULL),--full)

# A language model of 135 million parameters, layer by layer.
demo-lm: .venv/tokenizers
	$(BIN)/python -m demo.language $(if $(QUICK),--quick) $(if $(FULL),--full)

test: .venv/installed
	$(BIN)/python -m pytest

# Every CUDA kernel, executed on the CPU in several orders of threads and under sanitizers; then what
# nvcc made of them.
kernels: .venv/installed
	$(BIN)/python tests/emulation/check.py
	$(BIN)/python tests/emulation/table.py

bench: .venv/installed
	$(BIN)/python -m mfac.bench

# For a machine with a GPU and a CUDA toolkit: builds, tests and measures there. Nothing is installed
# but mfac itself: torch and pytest are those of PYTHON where it is given, otherwise of .venv where
# there is one. `make gpu-check DRY=1` takes every step up to the first kernel, without a GPU.
gpu-check:
	$(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON)) -m bench.gpu_check \
	  $(if $(DRY),--dry-run)

lint: .venv/lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/typos

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A manylinux wheel in dist/, for the Python of .venv and any torch from 2.10 on, which it finds where it
# is installed. Then it is loaded from where pip puts it, in an environment of its own that borrows torch.
wheel: .venv/wheel
	rm -rf build/wheel && mkdir -p build/wheel dist
	MFAC_CUDA=$(CUDA) $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  --wheel-dir build/wheel/repaired build/wheel/mfac-*.whl
	cp build/wheel/repaired/*.whl dist/
	$(BIN)/python -m venv build/wheel/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > build/wheel/borrowed.pth
	cp build/wheel/borrowed.pth build/wheel/venv/lib/python3*/site-packages/
	build/wheel/venv/bin/python -m pip install --quiet --no-deps --no-index build/wheel/repaired/*.whl
	cd build/wheel && venv/bin/python -c "import mfac; print(mfac.__file__, mfac.build_info())"

# The picture of the README, from the tables of docs/benchmarks/.
figures: .venv/installed
	$(BIN)/python -m tools.figures

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The extension is built in place (an editable install) and again whenever its sources change.
.venv/installed: .venv/bin/python pyproject.toml setup.py $(shell find csrc -type f)
	$(BIN)/python -m pip install --quiet --upgrade "setuptools>=77" ninja "pybind11>=2.13" "numpy" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test,demo]"
	@$(BIN)/python -c "import mfac; i = mfac.build_info(); print('mfac', i['version'], 'is built:', i['isa_chosen'], \
	  'on the CPU;', 'kernels of CUDA ' + i['cuda_toolkit'] if i['cuda_toolkit'] else 'no CUDA kernels (docs/install.md)')"
	touch $@

# What an extra lists, without building mfac again.
.venv/lint .venv/docs .venv/wheel: .venv/%: .venv/installed
	$(BIN)/python -c '$(REQUIREMENTS)' $* | $(BIN)/python -m pip install --quiet --requirement /dev/stdin
	touch $@

# Without the client of a hub of models, which nothing here calls.
.venv/tokenizers: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps tokenizers
	touch $@

clean:
	rm -rf .venv build dist *.egg-info mfac/_C*.so demo/out site .pytest_cache .hypothesis .mypy_cache .ruff_cache
