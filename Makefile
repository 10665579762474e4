# Everything from a clean checkout: `make demo`, `make test`. See README.md.

PYTHON ?= $(shell for v in 3.11 3.12 3.13 3.10; do command -v python$$v && exit; done; echo python3)
VENV ?= .venv
# Tested; override with, say, `make demo TORCH="torch --index-url ..."`.
TORCH ?= torch==2.13.0
# With --no-deps: no pip since 24.1 accepts what fairseq 0.12.2 says of its own requirements.
STOCK = fairseq==0.12.2 fairscale==0.4.13
BIN = $(VENV)/bin
# Scripts that import what lies beside them: mypy looks at each folder by itself.
SCRIPTS = benchmarks examples/localisation examples/paper docs
CODE = zcode_plugin zcode_mends zcode_compat.py tests examples benchmarks docs setup.py

.PHONY: demo test test-slow lint format docs install clean-demo
.DEFAULT_GOAL := test

demo: $(VENV)/ready
	@PATH="$(abspath $(BIN)):$$PATH" bash examples/localisation/demo.sh

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile \
	  --no-loadscope-reorder --durations 15

test-slow: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	for scripts in $(SCRIPTS); do $(BIN)/mypy $$scripts || exit; done

format: $(VENV)/ready
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# docs/reference.md out of the parsers, docs/results.md out of the studies; tests say when it is due.
docs: $(VENV)/ready
	$(BIN)/python docs/reference.py >docs/reference.tmp
	mv docs/reference.tmp docs/reference.md
	$(BIN)/python examples/paper/page.py >docs/results.tmp
	mv docs/results.tmp docs/results.md

# Into the Python environment that is active, for those who manage their own.
install:
	python -m pip install $(TORCH)
	python -m pip install --no-deps $(STOCK)
	python -m pip install .

# Made anew only when what it depends on has changed.
$(VENV)/ready: setup.cfg setup.py pyproject.toml Makefile zcode_compat.py zcode_compat.pth
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: $(PYTHON) is no Python 3.10 to 3.13: give one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@command -v cc >/dev/null && test -e "$$($(PYTHON) -c \
	  'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || { \
	  echo "make: fairseq is built from source: install a C compiler and Python headers" \
	  "(Debian, Ubuntu: apt-get install build-essential python3-dev)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps $(STOCK)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/zcode doctor
	@touch $@

clean-demo:
	rm -rf runs/demo
