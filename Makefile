PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test test-fast test-lowest lint format install clean

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

# The fast tests on the lowest supported versions, in an environment of their own
test-lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/python -m pytest -m "not slow"

$(VENV)-lowest/.installed: constraints-lowest.txt constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info .pytest_cache .ruff_cache
