"""Layer dropout takes rows out of layers and puts them back, for any family, and touches nothing but training."""

import copy
import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import tiny_causal_lm, token_ids
from torch import nn

from hf_evidenceflow import decoder_parts, evidence_flow
from hf_evidenceflow.supervision.layer_dropout import LayerDropout, dropout_rate, layer_dropout


def batch(rows=5):
    ids = token_ids(rows, 7)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def without(model, skipped):
    """The model without some of its layers."""
    parts = decoder_parts(copy.deepcopy(model))
    owner, _, name = parts.layers_name.rpartition(".")
    kept = [layer for index, layer in enumerate(parts.layers) if index not in skipped]
    setattr(parts.model.get_submodule(owner), name, nn.ModuleList(kept))
    parts.model.config.num_hidden_layers = len(kept)
    return parts.model


def test_the_rates_are_the_published_ones():
    rates = [dropout_rate(layer, 5, 0.4) for layer in range(5)]
    assert rates[0] == 0 and rates[2] == pytest.approx(0.4 * (2**0.5 - 1)) and rates[4] == pytest.approx(0.4)
    assert dropout_rate(4, 5, 0.4, progress=0.5) == pytest.approx(0.4 * (2**0.5 - 1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "mamba", "opt_post_norm"])
def test_each_row_has_the_logits_of_the_layers_that_it_did_not_skip(family):
    model, inputs = tiny_causal_lm(family).train(), {**batch(), "use_cache": False}
    with torch.no_grad():
        possible = [
            without(model, skipped)(**inputs).logits for skipped in itertools.chain([()], [(1,)], [(2,)], [(1, 2)])
        ]
    with layer_dropout(model, 0.5, seed=2) as dropout:
        dropout.rates = [0.0, 0.5, 0.5]
        logits = model(**inputs).logits
    found = set()
    for row, valid in enumerate(inputs["attention_mask"].bool()):
        same = [torch.allclose(logits[row][valid], other[row][valid], atol=1e-5) for other in possible]
        assert sum(same) == 1, f"row {row}: {same}"
        found.add(same.index(True))
    assert len(found) > 1 and 0 < dropout.skipped < 1


def test_a_layer_that_all_rows_skip_has_gradients_of_zero():
    model = tiny_causal_lm("llama").train()
    with layer_dropout(model) as dropout:
        dropout.rates = [0.0, 1.0, 0.0]
        model(**batch()).loss.backward()
    gradients = [parameter.grad for parameter in model.model.layers[1].parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def gradients_with(model, seed=3, **settings):
    with layer_dropout(model, 0.9, seed=seed, **settings) as dropout:
        model(**batch()).loss.backward()
    assert dropout.skipped > 0
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant):
    plain = gradients_with(tiny_causal_lm("llama").train())
    model = tiny_causal_lm("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    torch.testing.assert_close(gradients_with(model), plain)


def test_adapters_are_trained_with_it():
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert gradients_with(get_peft_model(tiny_causal_lm("llama"), config).train())


def test_supervised_states_are_those_behind_the_skipped_layer():
    model = tiny_causal_lm("llama").train()
    with layer_dropout(model) as dropout, evidence_flow(model, objective="mse") as flow:
        dropout.rates = [0.0, 1.0, 0.0]
        model(**batch()).loss.backward()
    terms = flow.log.pop()
    assert terms["evidence_flow/layer_1"] == terms["evidence_flow/layer_0"] != terms["evidence_flow/layer_2"]


def test_evaluation_and_the_model_behind_it_are_untouched():
    model, inputs = tiny_causal_lm("llama").eval(), batch()
    right = model(**inputs).logits
    with layer_dropout(model, 0.9):
        assert torch.equal(model(**inputs).logits, right)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_curriculum_rises_from_none_to_the_published_rate():
    dropout = LayerDropout(tiny_causal_lm("llama"), 0.4, "exponential", total_steps=5)
    first = dropout.rates
    dropout.start_step(4)
    assert first == [0.0, 0.0, 0.0] and dropout.rates[2] == pytest.approx(0.4)


@pytest.mark.parametrize(
    "family, arguments, message",
    [
        ("mixtral", {}, "balances its experts"),
        ("llama", {"max_rate": 1.0}, r"in \[0, 1\), got 1.0"),
        ("llama", {"curriculum": "linear"}, "got 'linear'"),
        ("llama", {"curriculum": "exponential"}, "pass `total_steps`"),
    ],
)
def test_what_cannot_be_is_refused(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerDropout(tiny_causal_lm(family), **arguments)
