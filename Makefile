# Each target installs what it needs once, in a virtual environment in .venv. The versions are those
# in constraints.txt. Choose another interpreter with `make demo PYTHON=python3.12`.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
# Python compiles the modules of the packages when it first imports them. Most are never imported.
# Where the environment forbids to keep the result, each process would compile them again.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(CONSTRAINTS)
DEFAULT_FORMS_TESTS := tests/ops tests/models tests/training/test_objectives.py tests/training/test_step.py \
	tests/tools/parity/test_ties.py

.PHONY: demo test test-default-forms gpu check format clean

demo: $(VENV)/.installed
	rm -rf runs/demo
	$(BIN)/rpn-jax demo --workdir runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto --dist loadfile

# The forms of operations that GPUs run, on this machine.
test-default-forms: $(VENV)/.installed-dev
	$(BIN)/pytest -n auto --dist loadfile --default-forms --ignore tests/ops/cpu $(DEFAULT_FORMS_TESTS)

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m tools.gpu --out runs/gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) runs/demo build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rpn_jax needs Python 3.11 or newer. Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	touch $@
