"""Weights of a running engine, by the names that TRL sends."""

import pytest
import torch


pytest.importorskip("vllm")

import engines


pytestmark = pytest.mark.slow


def trl_names(model):
    """As `VLLMGeneration.sync_weights` sends them: one at a time, with the names of the model in transformers."""
    return list(model.named_parameters())


@pytest.mark.parametrize("family", engines.FAMILIES)
def test_weights_sent_one_by_one_change_the_engine_as_a_whole(engine, checkpoint, tmp_path, tokenizer, family):
    other = engines.make_checkpoint(tmp_path, tokenizer, family, seed=5)
    llm = engine(checkpoint(family))
    prompts = engines.make_prompts()
    before = engines.tokens_of(engines.run(llm, prompts))
    model = engines.load(other)
    for name, parameter in trl_names(model):
        llm.llm_engine.model_executor.driver_worker.model_runner.model.load_weights([(name, parameter.data)])
    llm.reset_prefix_cache()
    after = engines.tokens_of(engines.run(llm, prompts))
    assert after == engines.reference_tokens(other, prompts)
    assert after != before


def test_the_marker_s_table_is_a_buffer_that_no_checkpoint_holds(engine, checkpoint):
    llm = engine(checkpoint())
    model = engines.model_state(llm).model
    assert dict(model.named_buffers())["thinking_marker"].dtype == torch.long
    assert "thinking_marker" not in model.state_dict()
