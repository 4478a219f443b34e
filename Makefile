PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-fast lint format install clean

# `torch` is pinned first: without a pin, pip may take gigabytes of CUDA packages
$(VENV)/.installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(RUN) recipes/demo.py --output_dir outputs/demo

test: $(VENV)/.installed
	$(RUN) -m pytest

test-fast: $(VENV)/.installed
	$(RUN) -m pytest -m "not slow"

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
