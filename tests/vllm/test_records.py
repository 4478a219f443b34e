"""Records of an engine: none stays behind."""

import pytest


pytest.importorskip("vllm")

import engines
from vllm import SamplingParams

from hf_evidenceflow.integrations.vllm.worker import take_thinking


pytestmark = pytest.mark.slow


def test_what_is_taken_is_gone_and_so_is_what_was_aborted(engine, checkpoint):
    llm = engine(checkpoint())
    state = engines.model_state(llm)
    state.records.keeps = True
    llm.llm_engine.add_request(
        "gone", {"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=64, ignore_eos=True, detokenize=False)
    )
    for _ in range(5):
        llm.llm_engine.step()
    assert len(next(iter(state.records.live.values())).markers) >= 4
    llm.llm_engine.abort_request(["gone"])
    outputs = engines.run(llm, engines.make_prompts(8))
    taken = take_thinking(state, engines.lengths_of(outputs))
    assert len(taken) == 8
    assert not state.records.live and not state.records.left


def test_a_server_keeps_the_records_of_a_few_requests_that_have_left(engine, checkpoint):
    llm = engine(checkpoint(), max_num_seqs=3)
    state = engines.model_state(llm)
    engines.run(llm, engines.make_prompts(12), max_tokens=2)
    assert len(state.records.left) == 2 * 3
