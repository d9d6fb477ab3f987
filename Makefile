# `make demo` needs python3 (3.11 or newer) and nothing else, `make test` also EGL, to render worlds
# (.ci/run installs it on Debian): they make .venv here.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
# The tests mostly compile, which keeps one core busy: a worker for each of two, a file at a time.
PYTEST := JAX_PLATFORMS=cpu $(PY) -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint docs clean

help:
	@echo "make demo       sample videos with the shipped checkpoint into demo/"
	@echo "make test       the test suite, without the slow tests"
	@echo "make test-slow  the slow tests: notebooks, type check, full-size runs"
	@echo "make lint       ruff and mypy"
	@echo "make docs       build the documentation into site/"
	@echo "make clean      remove .venv and .cache"

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(PY) examples/demo.py --out demo

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	$(PY) -m mkdocs build --strict

clean:
	rm -rf $(VENV) .cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps make a second run skip the installation until the requirements change.
$(VENV)/.installed: setup.py | $(PY)
	@echo "Installing sora_jax into $(VENV) (once; a minute or two)"
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: setup.py | $(PY)
	@echo "Installing sora_jax and what the tests need into $(VENV) (once; a few minutes)"
	$(INSTALL) -e '.[test]'
	@$(PY) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torchvision") is not None)' || \
	  { echo "torchvision is installed and breaks diffusers: run make clean" >&2; exit 1; }
	@touch $(VENV)/.installed $@
