"""Checkpoints and references of the tests of vLLM, which are skipped without it; `make test-vllm` brings it."""

import importlib.util
import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent / "harness"))
import engines


if importlib.util.find_spec("vllm") is not None:
    engines.prepare_environment()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer):
    """Folder of a thinking checkpoint of a family, in mode `projection`; each is made once."""
    made = {}

    def make(family="qwen2"):
        if family not in made:
            made[family] = engines.make_checkpoint(tmp_path_factory.mktemp(family), tokenizer, family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def reference(checkpoint):
    """Greedy completions of our `generate` for the prompts of `engines.make_prompts`; each is computed once."""
    made = {}

    def get(family="qwen2", **fields):
        key = (family, *sorted(fields.items()))
        if key not in made:
            made[key] = engines.reference_tokens(checkpoint(family), engines.make_prompts(), **fields)
        return made[key]

    return get


@pytest.fixture(scope="module")
def engine():
    """Makes an engine; one at a time is held, in this process."""
    held = {}

    def get(folder, **kwargs):
        key = (folder, repr(sorted(kwargs.items())))
        if key not in held:
            if held:
                engines.close(held.popitem()[1])
            held[key] = engines.make_engine(folder, **kwargs)
        return held[key]

    yield get
    for llm in held.values():
        engines.close(llm)
