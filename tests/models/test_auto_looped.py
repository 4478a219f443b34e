"""Checkpoints of other types as looped Llamas: published loops against their formulas, plain ones to the bit."""

import json

import pytest
import torch
from looped_reference import nanbeige_logits, ouro_logits
from safetensors.torch import save_file
from tiny_models import TINY
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig

from hf_evidenceflow import LoopedLlamaForCausalLM, load_looped_model


IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
# The fields of a published config.json, in small numbers
OURO = {
    "architectures": ["OuroForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_ouro.OuroConfig",
        "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
    },
    "model_type": "ouro",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": ["full_attention"] * 2,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "total_ut_steps": 4,
    "early_exit_threshold": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "use_cache": True,
}
NANBEIGE = {name: OURO[name] for name in OURO if name not in ("total_ut_steps", "early_exit_threshold", "layer_types")}
NANBEIGE |= {
    "architectures": ["NanbeigeForCausalLM"],
    "model_type": "nanbeige",
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "rope_theta": 70000000,
    "num_loops": 2,
    "loop_loss_weights": [],
    "skip_loop_final_norm": False,
    "kv_channels": 12,
}


def random_weights(config, ouro=False):
    generator = torch.Generator().manual_seed(3)
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens": (97, hidden), "lm_head": (97, hidden), "model.norm": (hidden,)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["input_layernorm_2", "post_attention_layernorm_2"] * ouro
    parts = {f"self_attn.{name}_proj": (rows, hidden) for name, rows in zip("qkv", (queries, keys, keys))}
    parts |= {"self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    parts |= {"mlp.down_proj": (hidden, inner)} | dict.fromkeys(norms, (hidden,))
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in parts.items()}
    if ouro:
        shapes["model.early_exit_gate"] = (1, hidden)
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.3 + (len(shape) == 1)
    if ouro:
        weights["model.early_exit_gate.bias"] = torch.full((1,), -0.3)
    return weights


@pytest.fixture
def write(tmp_path):
    def write(config, weights):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return str(tmp_path)

    return write


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_ouro_checkpoint_gives_the_logits_of_the_published_formulas(write):
    weights = random_weights(OURO, ouro=True)
    model = load_looped_model(write(OURO, weights)).eval()
    assert set(model.state_dict()) == set(weights)
    assert model.config.num_hidden_layers == 8
    close(model(IDS).logits, ouro_logits(weights, OURO, IDS))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
@torch.no_grad()
def test_ouro_s_selection_of_loops_is_the_published_one(write, threshold):
    weights = random_weights(OURO, ouro=True)
    model = load_looped_model(write(OURO, weights), early_exit_threshold=threshold, early_exit_mode="select").eval()
    expected = ouro_logits(weights, OURO, IDS, threshold)
    close(model(IDS).logits, expected)
    assert (expected - ouro_logits(weights, OURO, IDS)).abs().max() > 1e-2


@torch.no_grad()
def test_fewer_loops_of_ouro_are_those_of_its_config(write):
    weights = random_weights(OURO, ouro=True)
    model = load_looped_model(write(OURO, weights), num_loops=3).eval()
    close(model(IDS).logits, ouro_logits(weights, {**OURO, "total_ut_steps": 3}, IDS))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"skip_loop_final_norm": True},
        {"loop_loss_weights": [0.2, 0.3]},
        {"enable_double_loop_split": True},
        {"enable_double_loop_split": True, "loop_middle_layers": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_nanbeige_checkpoint_gives_the_logits_of_the_published_formulas(write, more):
    config = NANBEIGE | more
    weights = random_weights(config)
    model = load_looped_model(write(config, weights)).eval()
    close(model(IDS).logits, nanbeige_logits(weights, config, IDS))


@pytest.mark.parametrize("feature", ["enable_hyper_connection", "loop_share_kv", "emb_neighbor_num"])
def test_features_of_nanbeige_that_would_be_lost_are_refused_by_name(write, feature):
    with pytest.raises(ValueError, match=f"uses `{feature}`"):
        load_looped_model(write(NANBEIGE | {feature: 2}, random_weights(NANBEIGE)))


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def plain(request, tmp_path):
    torch.manual_seed(3)
    fields = {**TINY, "initializer_range": 0.2, "head_dim": 6}
    fields |= {"sliding_window": None} if request.param == "mistral" else {}
    config = AutoConfig.for_model(request.param, **fields)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


def test_a_plain_checkpoint_with_one_loop_computes_what_it_did_to_the_bit(plain):
    model, folder = plain
    looped = load_looped_model(folder, loop_block=(1, 2), loop_damping=True).eval()
    outputs = [each(IDS, labels=IDS) for each in (model, looped)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    gradients = dict(looped.named_parameters())
    assert all(torch.equal(each.grad, gradients[name].grad) for name, each in model.named_parameters())
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(IDS, **options), looped.generate(IDS, **options))


def test_a_plain_checkpoint_loops_and_is_saved_and_loaded_as_it_is(plain, tmp_path):
    looped = load_looped_model(plain[1], num_loops=3, loop_block=(1, 2), loop_damping=True).eval()
    assert looped.config.num_hidden_layers == 5
    looped.save_pretrained(tmp_path / "looped")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "looped")
    assert type(again) is LoopedLlamaForCausalLM
    assert torch.equal(again(IDS).logits, looped(IDS).logits)
    assert not torch.equal(again(IDS).logits, plain[0](IDS).logits)


def test_a_gate_can_be_added_to_a_plain_checkpoint(plain, tmp_path):
    model = load_looped_model(plain[1], num_loops=3, exit_gate=True)
    model.train()(IDS, labels=IDS).loss.backward()
    assert model.model.early_exit_gate.weight.grad.any()
    model.save_pretrained(tmp_path / "gated")
    assert load_looped_model(tmp_path / "gated").config.exit_gate


def test_an_ouro_checkpoint_that_lost_its_gate_is_refused(write):
    weights = random_weights(OURO, ouro=True)
    del weights["model.early_exit_gate.weight"]
    with pytest.raises(ValueError, match="lacks weights of .*early_exit_gate.weight"):
        load_looped_model(write(OURO, weights))


def test_a_checkpoint_of_another_kind_is_refused_with_those_that_loop(tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="type `gpt2` cannot be loaded as a looped Llama. Take one of type `llama`"):
        load_looped_model(str(tmp_path))


def test_sliding_windows_are_refused(tmp_path):
    MistralConfig(sliding_window=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding window"):
        load_looped_model(str(tmp_path))
