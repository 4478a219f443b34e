"""Self-speculation writes what greedy decoding writes, keeps its cache, and says what it accepted."""

import math

import pytest
import torch
from tiny_families import tiny_causal_lm, token_ids
from tiny_models import TINY
from tiny_tinyseek import tiny_tinyseek
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria

from hf_evidenceflow import (
    CrossLayerLlamaConfig,
    CrossLayerLlamaForCausalLM,
    EvidenceFlowConfig,
    evidence_flow,
)
from hf_evidenceflow.early_exit import SelfSpeculation, early_exit


def row_of(prompts, row):
    return {name: tensor[row : row + 1] for name, tensor in prompts.items()}


def both(model, inputs, speculation, **settings):
    """Sequences of greedy decoding and of self-speculation, with their caches."""
    settings = {"max_new_tokens": 17, "do_sample": False, "return_dict_in_generate": True, **settings}
    return model.generate(**inputs, **settings), model.generate(**inputs, **settings, custom_generate=speculation)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("depth", [1, 3, 4])
def test_output_and_cache_are_those_of_greedy_decoding(make_model, prompts, family, depth):
    model = make_model(family)
    speculation = SelfSpeculation(model, depth, draft_tokens=4, min_confidence=0.0)
    for row in range(3):
        plain, own = both(model, row_of(prompts, row), speculation)
        assert plain.sequences.tolist() == own.sequences.tolist()
        for right, layer in zip(plain.past_key_values.layers, own.past_key_values.layers, strict=True):
            # Passes over several tokens round otherwise than passes over one
            torch.testing.assert_close(layer.keys, right.keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.values, right.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("draft_tokens", [1, 2, 7])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 12])
def test_a_trained_model_writes_the_same_at_any_length(trained, prompts, draft_tokens, max_new_tokens):
    speculation = SelfSpeculation(trained, 2, draft_tokens)
    plain, own = both(trained, row_of(prompts, 1), speculation, max_new_tokens=max_new_tokens)
    assert plain.sequences.tolist() == own.sequences.tolist()


def test_it_ends_at_the_end_of_text(trained, prompts):
    inputs = row_of(prompts, 0)
    free = trained.generate(**inputs, max_new_tokens=17, do_sample=False)
    for place in range(10, 16):
        end = {"eos_token_id": free[0, place].item()}
        plain, own = both(trained, inputs, SelfSpeculation(trained, 2, 5, 0.0), **end)
        assert plain.sequences.tolist() == own.sequences.tolist()
        assert own.past_key_values.get_seq_length() == own.sequences.shape[1] - 1


class AtLength(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("length", [11, 14, 15, 16])
def test_it_stops_where_greedy_decoding_stops_for_any_criterion(trained, prompts, length):
    plain, own = both(
        trained, row_of(prompts, 1), SelfSpeculation(trained, 3, 6, 0.0), stopping_criteria=[AtLength(length)]
    )
    assert own.sequences.shape[1] == length
    assert plain.sequences.tolist() == own.sequences.tolist()


@pytest.mark.parametrize(
    "processors", [{"repetition_penalty": 1.7}, {"min_new_tokens": 17}, {"no_repeat_ngram_size": 1}], ids=str
)
def test_logits_processors_act_on_each_token(trained, prompts, processors):
    plain, own = both(trained, row_of(prompts, 0), SelfSpeculation(trained, 2, 5, 0.0), **processors)
    assert plain.sequences.tolist() == own.sequences.tolist()


def test_it_goes_on_from_a_cache(trained, prompts):
    inputs, speculation = row_of(prompts, 1), SelfSpeculation(trained, 2)
    _, first = both(trained, inputs, speculation, max_new_tokens=5)
    ids = first.sequences
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = trained.generate(**again, max_new_tokens=6, do_sample=False)
    own = trained.generate(
        **again, max_new_tokens=6, past_key_values=first.past_key_values, custom_generate=speculation
    )
    assert plain.tolist() == own.tolist()


def test_all_is_accepted_where_the_upper_layers_do_nothing(make_model, prompts):
    model = make_model("llama")
    with torch.no_grad():
        for layer in model.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    speculation = SelfSpeculation(model, 2, draft_tokens=3, min_confidence=0.0)
    both(model, row_of(prompts, 1), speculation, max_new_tokens=13, min_new_tokens=13)
    assert speculation.accept_rate == 1.0
    assert (speculation.drafted, speculation.rounds) == (9, 3)  # 1 from the prompt, then 4 a round


def test_the_accept_rate_counts_what_the_whole_model_confirmed(trained, prompts):
    speculation = SelfSpeculation(trained, 1, draft_tokens=1, min_confidence=0.0)
    assert math.isnan(speculation.accept_rate)
    _, own = both(trained, row_of(prompts, 1), speculation, max_new_tokens=13, min_new_tokens=13)
    new = own.sequences.shape[1] - 10
    assert new == 1 + speculation.rounds + speculation.accepted
    assert 0 < speculation.accepted < speculation.drafted
    speculation.reset()
    assert speculation.drafted == speculation.accepted == speculation.rounds == 0


def test_a_draft_ends_behind_an_unlikely_token(trained, prompts):
    drafted = []
    for least in (0.0, 1.0):
        speculation = SelfSpeculation(trained, 1, draft_tokens=5, min_confidence=least)
        both(trained, row_of(prompts, 1), speculation, min_new_tokens=17)
        drafted.append(speculation.drafted / speculation.rounds)
    assert drafted[0] > 2 and drafted[1] <= 1


def test_the_first_layers_alone_are_run_while_drafting(make_model, prompts):
    model, calls = make_model("llama"), []
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: calls.append(index))
    speculation = SelfSpeculation(model, 2, draft_tokens=3, min_confidence=0.0)
    calls.clear()
    model.generate(**row_of(prompts, 1), max_new_tokens=9, min_new_tokens=9, custom_generate=speculation)
    assert calls.count(4) == 1 + speculation.rounds  # prompt and verification
    assert calls.count(1) == 1 + speculation.rounds + speculation.drafted


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"do_sample": True}, "do_sample"),
        ({"num_beams": 2}, "num_beams=2"),
        ({"output_scores": True, "return_dict_in_generate": True}, "scores"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "the cache of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_do_is_refused(make_model, prompts, settings, message):
    model = make_model("llama")
    with pytest.raises(ValueError, match=message):
        model.generate(**row_of(prompts, 1), max_new_tokens=3, custom_generate=SelfSpeculation(model, 2), **settings)


def test_a_batch_is_refused(make_model, prompts):
    model = make_model("llama")
    with pytest.raises(ValueError, match="a batch of 3"):
        model.generate(**prompts, max_new_tokens=3, custom_generate=SelfSpeculation(model, 2))


def test_a_sliding_window_is_refused(make_model, prompts):
    model = make_model("gemma2")
    with pytest.raises(ValueError, match="the cache of Gemma2"):
        model.generate(**row_of(prompts, 1), max_new_tokens=3, custom_generate=SelfSpeculation(model, 2))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"depth": 5}, "from 1 to 4"),
        ({"depth": 0}, "from 1 to 4"),
        ({"depth": 2, "draft_tokens": 0}, "draft_tokens.*got 0"),
        ({"depth": 2, "min_confidence": 1.5}, "min_confidence.*got 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        SelfSpeculation(make_model("llama"), **arguments)


def test_a_looped_block_is_refused():
    config = LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    with pytest.raises(ValueError, match="share a place in the KV cache"):
        SelfSpeculation(model, 1)


def test_a_looped_block_with_a_cache_of_each_loop_writes_what_it_writes_alone():
    model = tiny_tinyseek(num_hidden_layers=4)
    ids = token_ids(1, 9)
    speculation = SelfSpeculation(model, 2, min_confidence=0)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    plain = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, custom_generate=speculation), plain)
    assert speculation.drafted > 0


def test_it_is_refused_inside_early_exit(make_model, prompts):
    model = make_model("llama")
    speculation = SelfSpeculation(model, 2)
    with early_exit(model), pytest.raises(ValueError, match="custom_generate"):
        model.generate(**row_of(prompts, 1), max_new_tokens=3, custom_generate=speculation)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_stock_assistant_early_exit_writes_the_same_under_layer_supervision(make_model, prompts, family):
    model, inputs = make_model(family), row_of(prompts, 1)
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    with evidence_flow(model, EvidenceFlowConfig(objective="cross_entropy", layers=[1])):
        stock = model.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_early_exit=2)
        own = model.generate(**inputs, max_new_tokens=12, custom_generate=SelfSpeculation(model, 2))
    assert plain.tolist() == stock.tolist() == own.tolist()


@pytest.mark.parametrize("processors", [{}, {"repetition_penalty": 1.7}], ids=str)
def test_a_draft_vocabulary_changes_no_token(trained, prompts, processors):
    speculation = SelfSpeculation(trained, 2, 5, min_confidence=0.0, vocabulary=range(3, 70))
    plain, own = both(trained, row_of(prompts, 1), speculation, min_new_tokens=17, **processors)
    assert plain.sequences.tolist() == own.sequences.tolist()
    assert speculation.accepted > 0


def test_a_draft_vocabulary_that_does_not_exist_is_refused(make_model):
    with pytest.raises(ValueError, match="token ids from 0 to 96"):
        SelfSpeculation(make_model("llama"), 2, vocabulary=[5, 97])


def test_a_model_that_reads_states_of_earlier_layers_runs_them_again():
    torch.manual_seed(0)
    model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v2m3")).eval()
    ids = token_ids(1, 9)
    speculation = SelfSpeculation(model, 2, 3, min_confidence=0)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
    plain = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, **settings, custom_generate=speculation), plain)
    assert not speculation.keeps_drafts and SelfSpeculation(tiny_causal_lm("llama"), 2).keeps_drafts
