"""vLLM computes what our `generate` and the training forward compute."""

import pytest


pytest.importorskip("vllm")

import engines
from training_forward import compare

from hf_evidenceflow.integrations.vllm.worker import take_thinking


pytestmark = pytest.mark.slow
COUNTED = {"thinking_count": 5, "thinking_placeholder_id": 8, "thinking_projection_norm": "layernorm"}
SAMPLING = {
    "greedy": {},
    "temperature": {"temperature": 0.7, "n": 4, "seed": 3},
    "cut": {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "n": 2, "seed": 4},
}


def overrides(mode, **fields):
    return {"thinking_mode": mode, **(COUNTED if mode in ("coconut", "codi", "pause") else {}), **fields}


@pytest.mark.parametrize("family", engines.FAMILIES)
def test_greedy_tokens_are_those_of_generate(engine, checkpoint, reference, family):
    llm = engine(checkpoint(family))
    assert engines.tokens_of(engines.run(llm, engines.make_prompts())) == reference(family)


@pytest.mark.parametrize("family", engines.FAMILIES)
def test_mode_none_is_the_base_model_and_differs_from_thinking(engine, checkpoint, reference, family):
    llm = engine(checkpoint(family), hf_overrides={"thinking_mode": "none"})
    tokens = engines.tokens_of(engines.run(llm, engines.make_prompts()))
    assert tokens == reference(family, thinking_mode="none")
    assert sum(a == b for a, b in zip(tokens, reference(family))) < 6


@pytest.mark.parametrize("mode", ["coconut", "codi", "pause"])
def test_counted_thoughts_are_those_of_generate(engine, checkpoint, reference, mode):
    fields = overrides(mode)
    llm = engine(checkpoint(), hf_overrides=fields)
    tokens = engines.tokens_of(engines.run(llm, engines.make_prompts()))
    assert tokens == reference(**fields)
    assert {tuple(row[:5]) for row in tokens} == {(8, 8, 8, 8, 8)}


def test_thinking_ends_behind_the_marker_as_in_generate(engine, checkpoint, reference):
    fields = {"thinking_answer_start": "e"}
    llm = engine(checkpoint(), hf_overrides=fields)
    engines.model_state(llm).records.keeps = True
    outputs = engines.run(llm, engines.make_prompts())
    assert engines.tokens_of(outputs) == reference(**fields)
    taken = take_thinking(engines.model_state(llm), engines.lengths_of(outputs))
    token = llm.get_tokenizer().convert_tokens_to_ids("e")
    for output in outputs:
        ids = list(output.outputs[0].token_ids)
        thoughts = ids.index(token) if token in ids else len(ids)
        assert taken[output.request_id][1].tolist() == [True] * thoughts + [False] * (len(ids) - thoughts)
    assert any(not mask.all() for _, mask in taken.values())


def test_few_seats_small_chunks_and_a_warm_prefix_cache_change_nothing(engine, checkpoint, reference):
    llm = engine(checkpoint(), max_num_seqs=4, max_num_batched_tokens=48, enable_prefix_caching=True)
    for _ in range(2):
        assert engines.tokens_of(engines.run(llm, engines.make_prompts())) == reference()


@pytest.mark.parametrize("mode", ["projection", "embedding", "soft", "coconut"])
def test_states_and_log_probabilities_are_those_of_the_training_forward(engine, checkpoint, mode):
    fields = overrides(mode)
    llm = engine(checkpoint(), hf_overrides=fields)
    model = engines.load(checkpoint(), **fields)
    engines.model_state(llm).records.keeps = True
    for name, sampling in SAMPLING.items():
        outputs = engines.run(llm, engines.make_prompts(8), **sampling)
        taken = take_thinking(engines.model_state(llm), engines.lengths_of(outputs))
        for output in outputs:
            for completion in output.outputs:
                states, mask = taken[engines.id_of(output, completion)]
                gap, offset = compare(model, output, completion, states, mask, sampling)
                assert gap <= 1e-4, (name, mode, gap)
                assert offset <= 1e-4, (name, mode, offset)
        shifted = compare(model, output, completion, states.roll(1, 0), mask, sampling)[0]
        assert shifted > 0.1, (name, mode, shifted)


def second_turn(prompts, outputs):
    """Prompts that hold the first turn, and some tokens more."""
    return [[*ids, *output.outputs[0].token_ids, 7, 11, 5] for ids, output in zip(prompts, outputs)]


def test_a_second_turn_does_not_read_the_cache_of_the_first_turn_s_completion(engine, checkpoint):
    llm = engine(checkpoint(), enable_prefix_caching=True)
    prompts = engines.make_prompts()
    turns = second_turn(prompts, engines.run(llm, prompts))
    outputs = engines.run(llm, turns, max_tokens=16)
    assert engines.tokens_of(outputs) == engines.reference_tokens(checkpoint(), turns, 16)
    # The blocks of the first prompt are shared with the second
    assert sum(output.num_cached_tokens for output in outputs) > 0
    shared = [len(prompt) // 32 * 32 for prompt in prompts]
    assert [output.num_cached_tokens for output in outputs] == shared


def test_without_their_own_hashes_completions_poison_the_second_turn(engine, checkpoint, monkeypatch):
    from vllm.v1.request import Request

    from hf_evidenceflow.integrations.vllm import scheduler

    monkeypatch.setattr(scheduler, "update_block_hashes", lambda request, size: Request.update_block_hashes(request))
    llm = engine(checkpoint(), enable_prefix_caching=True, seed=1)
    prompts = engines.make_prompts()
    turns = second_turn(prompts, engines.run(llm, prompts))
    outputs = engines.run(llm, turns, max_tokens=16)
    right = engines.reference_tokens(checkpoint(), turns, 16)
    assert sum(a == b for a, b in zip(engines.tokens_of(outputs), right)) < 20
