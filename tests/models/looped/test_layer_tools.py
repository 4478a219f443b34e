"""What reads, supervises or leaves layers counts the calls of a looped model, each loop's."""

import pytest
import torch
from generation_checks import MASK, PROMPTS
from tiny_models import TINY

from hf_evidenceflow import (
    EvidenceFlowConfig,
    LoopedLlamaConfig,
    LoopedLlamaForCausalLM,
    decoder_parts,
    evidence_flow,
    record_layer_states,
)
from hf_evidenceflow.early_exit import EarlyExitConfig, SelfSpeculation, early_exit, exit_at, simulate_early_exit
from hf_evidenceflow.probe.probe import EvidenceProbe


SHAPES = {
    "damped": {"loop_damping": True},
    "a block": {"loop_blocks": [[1, 2]], "loop_damping": True},
    "ouro": {"loop_norm": True, "exit_gate": True, "sandwich_norm": True},
    "lora": {"loop_lora_r": 2},
}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request):
    torch.manual_seed(0)
    fields = {**TINY, "num_hidden_layers": 2, "num_loops": 3, "initializer_range": 0.2, **request.param}
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**fields)).double().eval()
    for name, parameter in model.named_parameters():
        if ".loop_" in name:  # fresh changes are 0
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def test_recorded_states_are_those_after_each_call_and_the_last_is_read_out(model):
    parts = decoder_parts(model)
    with record_layer_states(parts) as states:
        output = model(PROMPTS, output_hidden_states=True)
    assert len(states) == model.config.num_hidden_layers == len(output.hidden_states) - 1
    torch.testing.assert_close(parts.readout(states[-1]), output.logits)


@torch.no_grad()
def test_a_loop_s_last_call_is_read_out_as_the_model_that_stops_there():
    fields = {**TINY, "num_hidden_layers": 2, "num_loops": 3, **SHAPES["ouro"]}
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**fields)).eval()
    parts = decoder_parts(model)
    with record_layer_states(parts) as states:
        model(PROMPTS)
    model.set_num_loops(2)
    torch.testing.assert_close(parts.readout(states[3]), model(PROMPTS).logits)


def test_layer_supervision_has_a_term_for_each_call_but_the_last(model):
    settings = EvidenceFlowConfig(objective="cross_entropy", weight=1.0, token_fraction=1.0, log_every=0)
    model.config.exit_gate = False  # else its loss is another one in training
    model.train()
    with torch.no_grad(), record_layer_states(decoder_parts(model)) as states:
        plain = model(PROMPTS, labels=PROMPTS).loss
    early = [
        torch.nn.functional.cross_entropy(
            decoder_parts(model).readout(state)[:, :-1].flatten(0, 1), PROMPTS[:, 1:].flatten()
        )
        for state in states[:-1]
    ]
    with evidence_flow(model, settings):
        supervised = model(PROMPTS, labels=PROMPTS).loss
    torch.testing.assert_close(supervised - plain, sum(early).float(), rtol=1e-4, atol=1e-4)


def test_the_probe_has_a_row_for_each_call(model):
    result = EvidenceProbe(model).probe({"input_ids": PROMPTS[1:2]})
    assert result.layers == list(range(-1, model.config.num_hidden_layers))


def test_confidence_exit_in_generate_is_the_parallel_simulation(model):
    config = EarlyExitConfig(criterion="relative_change", threshold=0.7)
    with early_exit(model, config) as exits:
        ids = model.generate(PROMPTS, attention_mask=MASK, **GREEDY)
    assert len(exits.depths[:, 1:].unique()) > 1
    mask = torch.cat([MASK, torch.ones(3, 8, dtype=torch.long)], dim=1)
    simulated = simulate_early_exit(model, ids, config, mask, prompt_length=7)
    assert torch.equal(simulated.depths[:, 6:-1], exits.depths)
    assert torch.equal(simulated.logits[:, 6:-1].argmax(-1), ids[:, 7:])


def test_own_and_stock_drafts_of_early_calls_change_no_token(model):
    prompt = PROMPTS[1:2]
    inputs = {"attention_mask": torch.ones_like(prompt), **GREEDY}
    plain = model.generate(prompt, **inputs)
    speculation = SelfSpeculation(model, 2, min_confidence=0)
    assert torch.equal(model.generate(prompt, **inputs, custom_generate=speculation), plain)
    assert torch.equal(model.generate(prompt, **inputs, assistant_early_exit=2), plain)
    assert speculation.drafted > 0


def test_a_model_cut_after_its_last_call_is_itself(model):
    with torch.no_grad(), exit_at(model, model.config.num_hidden_layers):
        cut = model(PROMPTS).logits
    torch.testing.assert_close(cut, model(PROMPTS).logits)
