"""Finding a causal LM's layers, final norm and head, and reading its layers out."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import CONFIGS, tiny_causal_lm, token_ids
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GraniteConfig, OPTConfig

from hf_evidenceflow import EvidenceFlowConfig, decoder_parts, record_layer_states
from hf_evidenceflow.supervision.evidence_flow import EvidenceFlow


@pytest.mark.parametrize("family", CONFIGS)
def test_the_last_layers_readout_is_the_models_logits(family):
    model = tiny_causal_lm(family).eval()
    parts = decoder_parts(model)
    with torch.no_grad(), record_layer_states(parts) as states:
        logits = model(token_ids()).logits
    assert [state.shape for state in states] == [(2, 11, 24)] * 3
    assert torch.equal(parts.readout(states[-1]), logits)
    assert not torch.equal(parts.readout(states[0]), logits)
    parts.check_readout(states[-1], logits)


def test_scaled_logits_are_read_out_scaled():
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(GraniteConfig(**sizes, num_attention_heads=4, logits_scaling=8.0)).eval()
    parts = decoder_parts(model)
    with torch.no_grad(), record_layer_states(parts) as states:
        logits = model(token_ids()).logits
    assert torch.equal(parts.readout(states[-1]), logits)


def test_an_unknown_step_before_the_logits_is_an_error():
    model = tiny_causal_lm("llama").eval()
    parts = decoder_parts(model)
    with torch.no_grad(), record_layer_states(parts) as states:
        logits = model(token_ids()).logits
    with pytest.raises(ValueError, match=r"LlamaForCausalLM does more .* differ by .* `mse`"):
        parts.check_readout(states[-1], 2 * logits)


@pytest.mark.parametrize("use", ["readout", "supervision"])
def test_embeddings_of_another_width_are_refused(use):
    config = OPTConfig(vocab_size=97, hidden_size=24, word_embed_proj_dim=12, num_hidden_layers=2, ffn_dim=20)
    config.num_attention_heads = 4
    model = AutoModelForCausalLM.from_config(config).eval()
    parts = decoder_parts(model)
    with torch.no_grad(), record_layer_states(parts) as states:
        logits = model(token_ids()).logits
    with pytest.raises(ValueError, match="layers of width 24 and embeddings of width 12"):
        if use == "readout":
            parts.check_readout(states[-1], logits)
        else:
            EvidenceFlow(model, EvidenceFlowConfig(objective="mse"), total_steps=2)


def test_adapters_are_looked_through():
    model = get_peft_model(tiny_causal_lm("llama"), LoraConfig(target_modules=["q_proj"]))
    assert len(decoder_parts(model).layers) == 3


def test_a_looped_block_counts_each_loop():
    model = tiny_causal_lm("llama").eval()
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    with torch.no_grad(), record_layer_states(decoder_parts(model)) as states:
        model(token_ids(), use_cache=False)
    assert len(states) == 3


def test_layers_can_be_named():
    model = tiny_causal_lm("llama")
    model._no_split_modules = None
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match=r"LlamaForCausalLM could not be found.*`layer_modules`.*: model.layers"):
        decoder_parts(model)
    assert len(decoder_parts(model, "model.layers").layers) == 3
    with pytest.raises(ValueError, match="under 'model.blocks'"):
        decoder_parts(model, "model.blocks")


def test_a_model_without_a_head_is_an_error():
    with pytest.raises(ValueError, match="LlamaModel has no output head"):
        decoder_parts(AutoModel.from_config(CONFIGS["llama"]))


def test_no_hook_stays_after_an_exception():
    model = tiny_causal_lm("llama")
    parts = decoder_parts(model)
    with pytest.raises(KeyError), record_layer_states(parts):
        raise KeyError
    assert not any(layer._forward_hooks for layer in parts.layers)
