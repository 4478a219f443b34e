"""The benchmark of a latent step at a tiny size: it runs, and writes what it says."""

import importlib
import json
import sys

import pytest
import torch
from repository import BENCHMARKS


pytestmark = pytest.mark.slow

SIZE = "d 32 x 1, vocabulary 40"


@pytest.fixture
def latent_step(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("timing", "latent_step"):
        # Names may be those of modules of other tests, which are to be back afterwards
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    module = importlib.import_module("latent_step")
    monkeypatch.setattr(module, "SIZES", {SIZE: ((32, 1, 40), (2, 5, 3))})
    monkeypatch.setattr(module, "THOUGHTS", (1, 2))
    return module


def test_time_and_memory_of_each_candidate_are_written(latent_step, tmp_path):
    threads = torch.get_num_threads()
    latent_step.main(["--output", str(tmp_path / "cost.json"), "--rounds", "1", "--threads", "1"])
    torch.set_num_threads(threads)
    results = json.loads((tmp_path / "cost.json").read_text())
    assert set(results) == {"setting", f"{SIZE}, 1 thoughts", f"{SIZE}, 2 thoughts"}
    assert list(results[f"{SIZE}, 2 thoughts"]) == list(latent_step.CANDIDATES)
    table = (tmp_path / "cost.md").read_text()
    assert "rounds in turn" in table and all(name in table for name in latent_step.CANDIDATES)


def test_a_chain_of_as_many_tokens_takes_the_same_columns_as_the_thoughts(latent_step, monkeypatch):
    widths = []
    forward = latent_step.ThinkingQwen2ForCausalLM.forward

    def spy(self, input_ids, **kwargs):
        output = forward(self, input_ids=input_ids, **kwargs)
        widths.append(output.logits.shape)
        return output

    monkeypatch.setattr(latent_step.ThinkingQwen2ForCausalLM, "forward", spy)
    for step in latent_step.make_steps(SIZE, 2).values():
        step()
    assert set(widths) == {(2, 2 + 3 + 1, 40)}
