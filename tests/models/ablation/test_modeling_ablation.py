"""One Llama with switches: the neutral setting, each part against a plain reference, and all combinations."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from causal_lm_checks import CausalLMChecks
from hub_round_trip import run_without_package
from peft import LoraConfig, get_peft_model
from tiny_models import TINY
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.models.ablation.configuration_ablation import SWITCHES, AblationLlamaConfig
from hf_evidenceflow.models.ablation.modeling_ablation import AblationLlamaForCausalLM, sinusoidal_embedding
from hf_evidenceflow.models.hub import hub_code


WIDE = {**TINY, "initializer_range": 0.2}
IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
COMBINATIONS = [
    dict(zip((*SWITCHES, "tie_word_embeddings"), values))
    for values in itertools.product(*SWITCHES.values(), (False, True))
]


def make_model(seed=7, **fields):
    torch.manual_seed(seed)
    return AblationLlamaForCausalLM(AblationLlamaConfig(**{**WIDE, **fields})).eval()


def make_vanilla(seed=7, **fields):
    torch.manual_seed(seed)
    return AblationLlamaForCausalLM(AblationLlamaConfig.vanilla(**{**WIDE, **fields})).eval()


class TestVanilla(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_vanilla()


class TestLearnedPositions(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_model(position_embedding="learned", norm_type="layernorm", tie_word_embeddings=True)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_without_switches_it_is_llama_to_the_bit(implementation):
    torch.manual_seed(7)
    expected = LlamaForCausalLM(LlamaConfig(**WIDE)).eval()
    model = make_model()
    for each in (expected, model):
        each.set_attn_implementation(implementation)
    assert list(model.state_dict()) == list(expected.state_dict())
    assert torch.equal(model(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda switches: "-".join(map(str, switches.values())))
def test_every_combination_trains_a_step_and_generates_cached_as_uncached(switches):
    model = make_model(**switches)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    cached, uncached = (
        model.generate(IDS, attention_mask=mask, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert cached.tolist() == uncached.tolist()


@pytest.mark.parametrize("switches", COMBINATIONS, ids=lambda switches: "-".join(map(str, switches.values())))
def test_every_combination_loads_as_it_was_saved(switches, tmp_path):
    model = make_model(**switches)
    model.save_pretrained(tmp_path)
    loaded, information = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("position", SWITCHES["position_embedding"])
def test_left_padding_changes_no_logits(position):
    model = make_model(position_embedding=position)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(11) >= 4).long().expand(2, -1)
    torch.testing.assert_close(
        model(padded, attention_mask=mask).logits[:, 4:], model(IDS).logits, atol=1e-5, rtol=1e-4
    )


def test_positions_are_the_sines_and_cosines_of_the_paper():
    table = sinusoidal_embedding(torch.arange(5)[None], 6)[0]
    for position, index in itertools.product(range(5), range(3)):
        angle = position / 10000 ** (2 * index / 6)
        assert math.isclose(table[position, 2 * index], math.sin(angle), abs_tol=1e-6)
        assert math.isclose(table[position, 2 * index + 1], math.cos(angle), abs_tol=1e-6)


def test_without_positions_the_order_of_earlier_tokens_does_not_matter_to_one_layer():
    model = make_model(position_embedding="nope", num_hidden_layers=1)
    swapped = IDS[:, [2, 0, 1, 3, 5, 4, 6]]
    torch.testing.assert_close(model(swapped).logits[:, -1], model(IDS).logits[:, -1], atol=1e-5, rtol=1e-4)
    rotated = make_model(num_hidden_layers=1)
    assert (rotated(swapped).logits[:, -1] - rotated(IDS).logits[:, -1]).abs().max() > 1e-2


def naive_vanilla(model, ids):
    """The transformer of 2017 in plain torch: logits of a vanilla model with one head per key-value head."""
    weights = {name.removeprefix("model."): parameter for name, parameter in model.named_parameters()}
    config = model.config
    heads, size = config.num_attention_heads, config.head_dim
    states = F.embedding(ids, weights["embed_tokens.weight"]) * math.sqrt(config.hidden_size)
    states = states + sinusoidal_embedding(torch.arange(ids.shape[1])[None], config.hidden_size)
    later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for layer in range(config.num_hidden_layers):

        def weight(name, layer=layer):
            return weights[f"layers.{layer}.{name}"]

        def norm(states, name, weight=weight):
            return F.layer_norm(
                states, (config.hidden_size,), weight(f"{name}.weight"), weight(f"{name}.bias"), config.rms_norm_eps
            )

        query, key, value = (
            (states @ weight(f"self_attn.{name}_proj.weight").T).unflatten(-1, (-1, size)).transpose(1, 2)
            for name in "qkv"
        )
        key, value = (each.repeat_interleave(heads // key.shape[1], 1) for each in (key, value))
        scores = (query @ key.transpose(2, 3) / math.sqrt(size)).masked_fill(later, -torch.inf)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2) @ weight("self_attn.o_proj.weight").T
        states = norm(states + attended, "input_layernorm")
        hidden = torch.relu(states @ weight("mlp.up_proj.weight").T) @ weight("mlp.down_proj.weight").T
        states = norm(states + hidden, "post_attention_layernorm")
    return states @ model.lm_head.weight.T


def test_vanilla_equals_the_plain_transformer_in_logits_and_gradients():
    model = make_vanilla()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    logits, expected = model(IDS).logits, naive_vanilla(model, IDS)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(logits.square().sum(), parameters)
    for gradient, other in zip(gradients, torch.autograd.grad(expected.square().sum(), parameters)):
        torch.testing.assert_close(gradient, other, atol=1e-3 * float(other.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("mlp_type", ["silu", "gelu", "relu"])
def test_an_mlp_without_gate_has_the_parameters_of_the_gated_one(mlp_type):
    gated, ungated = (make_model(mlp_type=kind).num_parameters() for kind in ("swiglu", mlp_type))
    assert gated == ungated


def test_the_width_without_gate_can_be_chosen():
    model = make_model(mlp_type="relu", ungated_intermediate_size=13)
    assert model.model.layers[0].mlp.up_proj.out_features == 13


def test_post_norm_has_no_norm_behind_the_last_layer():
    assert isinstance(make_model(norm_position="post").model.norm, torch.nn.Identity)


def test_bf16_and_lora_train():
    model = get_peft_model(make_vanilla().to(torch.bfloat16), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_position_beyond_the_learned_ones_is_refused():
    model = make_model(position_embedding="learned", max_position_embeddings=6)
    with pytest.raises(ValueError, match="Position 6 has no learned embedding.*max_position_embeddings=6"):
        model(IDS)


@pytest.mark.parametrize("name, value", [("norm_type", "batchnorm"), ("mlp_type", "swish"), ("norm_position", "mid")])
def test_a_wrong_position_of_a_switch_gives_the_right_ones(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be one of '.*', got '{value}'"):
        AblationLlamaConfig(**TINY, **{name: value})


def test_sinusoidal_positions_need_an_even_size():
    with pytest.raises(ValueError, match="even `hidden_size`, got 21"):
        AblationLlamaConfig(hidden_size=21, num_attention_heads=3, position_embedding="sinusoidal")


def test_a_misspelt_switch_is_an_error():
    with pytest.raises(ValueError, match="did you mean `norm_position`"):
        AblationLlamaConfig(**TINY, norm_positon="post")


@pytest.mark.slow
def test_the_saved_code_loads_where_the_package_cannot_be_imported(tmp_path):
    model = make_vanilla(mlp_type="gelu")
    with hub_code(model):
        model.save_pretrained(tmp_path / "model")
    torch.save({"input_ids": IDS, "logits": model(IDS).logits.detach()}, tmp_path / "expected.pt")
    script = """
        from transformers import AutoModelForCausalLM
        saved = torch.load("expected.pt", weights_only=True)
        model = AutoModelForCausalLM.from_pretrained("model", trust_remote_code=True)
        torch.testing.assert_close(model(saved["input_ids"]).logits, saved["logits"], atol=1e-5, rtol=1e-4)
    """
    run_without_package(script, tmp_path)
