"""Each loop's change of the weights: what it computes, that a fresh one is nothing, and that layers become loops."""

import pytest
import torch
from causal_lm_checks import CausalLMChecks
from tiny_models import TINY
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hf_evidenceflow import LoopedLlamaConfig, LoopedLlamaForCausalLM, load_looped_model
from hf_evidenceflow.models.looped.loop_lora import LoopLinear


WIDE = {**TINY, "initializer_range": 0.2}
IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
BLOCK = {"num_unique_layers": 4, "loop_blocks": [[1, 3]], "num_loops": 3}
LORA = {"loop_lora_r": 2, "loop_lora_alpha": 3}
BIASED = {"qkv_bias": True, "qk_norm": True, "sandwich_norm": True}


def make_model(**fields):
    """With changes that are not 0."""
    torch.manual_seed(7)
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**{**WIDE, **BLOCK, **LORA, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "loop" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


class TestLoopLora(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_model()

    # Merged, PEFT's DoRA scales the weight and not what is added to its output
    @pytest.mark.parametrize("use_dora", [False])
    def test_adapters_can_be_disabled_and_merged(self, model, use_dora):
        super().test_adapters_can_be_disabled_and_merged(model, use_dora)


def unrolled(model):
    """A model of one loop with a layer for each call, of the weights that the call has; and its layers by call."""
    calls = model.config.layer_calls()
    fields = {**WIDE, **BIASED, "num_hidden_layers": len(calls)}
    plain = LoopedLlamaForCausalLM(LoopedLlamaConfig(**fields)).eval()
    state = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    for number, call in enumerate(calls):
        weights = {name: value.clone() for name, value in model.model.layers[call.layer].state_dict().items()}
        for name in [name for name in weights if "loop_" in name]:
            part, kind = name.rsplit(".", 1)
            value = weights.pop(name)[call.loop]
            if kind == "loop_up":
                value = 3 / 2 * value @ model.model.layers[call.layer].get_parameter(f"{part}.loop_down")[call.loop]
            if kind != "loop_down":
                weights[f"{part}.{'bias' if kind == 'loop_bias' else 'weight'}"] += value
        state |= {f"model.layers.{number}.{name}": value for name, value in weights.items()}
    plain.load_state_dict(state)
    return plain


def test_each_loop_runs_on_its_weights_and_trains_its_change():
    model = make_model(**BIASED)
    plain = unrolled(model)
    outputs = [each(IDS, labels=IDS) for each in (model, plain)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-4, rtol=1e-4)
    for output in outputs:
        output.loss.backward()
    for number, call in enumerate(model.config.layer_calls()):
        shared, own = model.model.layers[call.layer].self_attn.q_proj, plain.model.layers[number].self_attn.q_proj
        if not isinstance(shared, LoopLinear):
            continue
        up, down, bias = (each[call.loop] for each in (shared.loop_up, shared.loop_down, shared.loop_bias.grad))
        gradients = [shared.loop_up.grad[call.loop], shared.loop_down.grad[call.loop], bias]
        expected = [1.5 * own.weight.grad @ down.T, 1.5 * up.T @ own.weight.grad, own.bias.grad]
        torch.testing.assert_close(gradients, expected, atol=1e-5, rtol=1e-3)
        assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_fresh_change_is_none_to_the_bit_and_all_of_it_learns(kind, tmp_path):
    save_plain(kind, tmp_path)
    loops = {"num_loops": 3, "loop_block": (1, 2)}
    models = [load_looped_model(tmp_path, **loops), load_looped_model(tmp_path, **loops, loop_lora_r=2)]
    outputs = [model(IDS, labels=IDS) for model in models]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    outputs[1].loss.backward()
    changes = {name: each for name, each in models[1].named_parameters() if ".loop_" in name}
    assert {name.split(".")[2] for name in changes} == {"1"}
    for name, change in changes.items():
        assert len(change) == 3
        assert all(loop.any() for loop in (change if "loop_down" in name else change.grad)), name


def save_plain(kind, folder, layers=3):
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**WIDE, "num_hidden_layers": layers, "head_dim": 6})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("block", [None, (1, 5), [(0, 2), (3, 5)]], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_shared_layers_with_changes_of_full_rank_are_the_layers_that_they_stand_for(kind, block, tmp_path):
    plain = save_plain(kind, tmp_path, layers=6)
    options = {"num_loops": 2, "loop_block": block, "share_layers": True}
    model = load_looped_model(tmp_path, **options, loop_lora_r=24, loop_lora_alpha=5)
    assert model.config.num_hidden_layers == 6
    assert model.config.num_unique_layers == len(model.model.layers) == (3 if block is None else 4)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, atol=1e-3, rtol=1e-3)
    model.save_pretrained(tmp_path / "shared")
    assert torch.equal(load_looped_model(tmp_path / "shared")(IDS).logits, model(IDS).logits)
    assert not torch.allclose(load_looped_model(tmp_path, **options)(IDS).logits, plain(IDS).logits, atol=0.1)


@torch.no_grad()
def test_a_lower_rank_leaves_the_smallest_singular_values_of_the_difference_from_the_average(tmp_path):
    plain = save_plain("llama", tmp_path, layers=4)
    model = load_looped_model(tmp_path, num_loops=2, share_layers=True, loop_lora_r=5)
    shared = model.model.layers[1].mlp.down_proj
    layers = [plain.model.layers[number].mlp.down_proj.weight for number in (1, 3)]
    torch.testing.assert_close(shared.weight, (layers[0] + layers[1]) / 2)
    for loop, weight in enumerate(layers):
        left = weight - shared.weight - shared.loop_up[loop] @ shared.loop_down[loop]
        expected = torch.linalg.svdvals(weight - shared.weight)[5:].square().sum().sqrt()
        torch.testing.assert_close(left.norm(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["freeze", "select"])
@torch.no_grad()
def test_a_token_that_left_early_has_keys_and_values_of_the_loop_that_reads_it(mode):
    exits = {"loop_norm": True, "exit_gate": True, "early_exit_threshold": 0.7, "early_exit_mode": mode}
    model = make_model(num_unique_layers=2, loop_blocks=[[0, 2]], **exits)
    cache = DynamicCache(config=model.config)
    parts = [model(ids, past_key_values=cache, use_cache=True).logits for ids in IDS.split([4, 1, 2], dim=1)]
    whole = model(IDS, use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    model.config.early_exit_threshold = 1.0
    assert (model(IDS).logits - whole).abs().max() > 1e-2


def test_another_number_of_loops_than_there_are_changes_for_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="for 3 loops and cannot run 2"):
        model.set_num_loops(2)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_layers": True}, "needs `num_loops`"),
        ({"share_layers": True, "num_loops": 2}, "Layers 0 to 2 cannot be shared by 2 loops: 3 is no multiple"),
        ({"share_layers": True, "num_loops": 1}, "into one of at least 2, got 1 and 1"),
        ({"num_loops": 2, "loop_lora_r": -1}, "`loop_lora_r` must be at least 0, got -1"),
        ({"num_loops": 2, "loop_lora_alpha": 4}, "cannot become None and 4"),
    ],
)
def test_what_cannot_be_converted_is_refused(options, message, tmp_path):
    save_plain("llama", tmp_path)
    with pytest.raises(ValueError, match=message):
        load_looped_model(tmp_path, **options)


def test_a_rank_cannot_be_changed(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has `loop_lora_r` 2 and `loop_lora_alpha` 3, which cannot become 4"):
        load_looped_model(tmp_path, loop_lora_r=4)
    with pytest.raises(ValueError, match="cannot be quantized"):
        LoopedLlamaConfig(**WIDE, **LORA, quantization_config={"quant_method": "bitsandbytes"})
