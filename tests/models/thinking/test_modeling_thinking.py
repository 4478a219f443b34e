"""The thinking models: loading, neutral setting, dtypes, initialization."""

import pytest
import torch
from causal_lm_checks import CausalLMChecks
from hub_round_trip import run_without_package
from tiny_models import TINY
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_evidenceflow import (
    ThinkingLlamaConfig,
    ThinkingLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
    ThinkingQwen3Config,
    ThinkingQwen3ForCausalLM,
    hub_code,
    load_thinking_model,
    register_models,
)
from hf_evidenceflow.models.thinking.thinking_residual import (
    THINKING_MODULES,
    ThinkingLambda,
    embedding_state,
    mix_thinking_state,
    normalize_state,
)


class ThinkingChecks(CausalLMChecks):
    has_beams = False
    fields = {"thinking_answer_start": None, "initializer_range": 0.2}


class TestThinkingQwen2(ThinkingChecks):
    @classmethod
    def make_model(cls):
        return ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY, **cls.fields, tie_word_embeddings=True))


class TestThinkingLlama(ThinkingChecks):
    @classmethod
    def make_model(cls):
        return ThinkingLlamaForCausalLM(ThinkingLlamaConfig(**TINY, **cls.fields, thinking_mode="embedding"))


class TestThinkingQwen3(ThinkingChecks):
    @classmethod
    def make_model(cls):
        return ThinkingQwen3ForCausalLM(ThinkingQwen3Config(**TINY, **cls.fields, head_dim=6, thinking_mode="soft"))


class TestNoThinking(ThinkingChecks):
    has_beams = True

    @classmethod
    def make_model(cls):
        return ThinkingLlamaForCausalLM(ThinkingLlamaConfig(**TINY, **cls.fields, thinking_mode="none"))


@pytest.fixture
def states_and_mask():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 5, TINY["hidden_size"], generator=generator), torch.ones(2, 5, dtype=torch.bool)


def thinking(parameters):
    return {name: p for name, p in parameters if "thinking" in name}


@pytest.mark.parametrize("mode", ["projection", "embedding", "none"])
def test_plain_checkpoint_without_mask_is_bit_equal_to_the_base(plain_checkpoint, mode):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    model = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, thinking_mode=mode)
    input_ids = torch.arange(3, 17).view(2, 7)
    assert torch.equal(model(input_ids).logits, base(input_ids).logits)


def test_mode_none_ignores_states_and_mask(plain_checkpoint, states_and_mask):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    model = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, thinking_mode="none")
    states, mask = states_and_mask
    input_ids = torch.arange(3, 17).view(2, 7)
    fused = model(input_ids, thinking_states=states, thinking_mask=mask).logits
    assert torch.equal(fused, base(input_ids).logits)


def test_empty_mask_is_bit_equal_to_the_base(plain_checkpoint, states_and_mask):
    base = Qwen2ForCausalLM.from_pretrained(plain_checkpoint)
    model = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint)
    states, mask = states_and_mask
    input_ids = torch.arange(3, 17).view(2, 7)
    fused = model(input_ids, thinking_states=states, thinking_mask=torch.zeros_like(mask)).logits
    assert torch.equal(fused, base(input_ids).logits)


def test_plain_checkpoint_misses_only_thinking_keys(plain_checkpoint):
    _, info = ThinkingQwen2ForCausalLM.from_pretrained(plain_checkpoint, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert info["missing_keys"] == {
        "model.thinking_residual_gate_r.weight",
        "model.thinking_residual_gate_r.bias",
        "model.thinking_residual_gate_i.weight",
        "model.thinking_residual_gate_i.bias",
        "model.thinking_residual_Lambda.Lambda",
        "model.thinking_projection.weight",
    }


def test_config_of_a_plain_checkpoint_becomes_the_thinking_type(plain_checkpoint):
    model = load_thinking_model(plain_checkpoint, thinking_mode="embedding")
    assert type(model) is ThinkingQwen2ForCausalLM
    assert model.config.model_type == "thinking_qwen2"
    assert model.config.thinking_mode == "embedding"


def test_fused_input_follows_the_formula(states_and_mask):
    torch.manual_seed(0)
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)).model
    states, mask = states_and_mask
    mask[0, 2] = False
    embeds = torch.randn(2, 8, TINY["hidden_size"])
    fused, _, _ = model.fuse(embeds, states, mask)

    e = embeds[:, 3:].double()
    linear = lambda gate: torch.sigmoid(e @ gate.weight.double().T + gate.bias.double())  # noqa: E731
    r, i = linear(model.thinking_residual_gate_r), linear(model.thinking_residual_gate_i)
    a = torch.exp(-8 * torch.log1p(torch.exp(-model.thinking_residual_Lambda.Lambda.double())) * r)
    s = states.double() @ model.thinking_projection.weight.double().T
    s = s / s.norm(dim=-1, keepdim=True)
    expected = embeds.double()
    expected[:, 3:] = torch.where(mask[..., None], a * e + torch.sqrt(1 - a**2 + 1e-8) * (i * s), e)
    torch.testing.assert_close(fused.double(), expected, rtol=0, atol=1e-5)


def test_mixing_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 5), draw(2, 3, 5), -0.01 - 0.1 * draw(5)]
    assert torch.autograd.gradcheck(mix_thinking_state, [x.requires_grad_() for x in inputs])


def test_embedding_state_is_the_weighted_embedding():
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(2, 7, generator=generator).softmax(-1)
    embedding = torch.randn(9, 5, generator=generator)  # longer than the head, as with a padded vocabulary
    expected = torch.stack(
        [sum(p * e for p, e in zip(row, embedding)) / sum(p * p for p in row).sqrt() for row in probs]
    )
    torch.testing.assert_close(embedding_state(probs, embedding), expected, rtol=0, atol=1e-6)


def test_normalizations_have_the_scale_they_name():
    generator = torch.Generator().manual_seed(1)
    projected, embeds = torch.randn(2, 3, 11, generator=generator), 3 * torch.randn(2, 3, 11, generator=generator)
    rms = lambda x: x.square().mean(-1).sqrt()  # noqa: E731
    torch.testing.assert_close(normalize_state(projected, embeds, "l2").norm(dim=-1), torch.ones(2, 3))
    layer = normalize_state(projected, embeds, "layernorm")
    torch.testing.assert_close(layer.mean(-1), torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(rms(layer), torch.ones(2, 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(rms(normalize_state(projected, embeds, "embedding_rms")), rms(embeds))


def test_lambda_is_uniform_in_its_range():
    torch.manual_seed(0)
    module = ThinkingLambda(4000, 8)
    module.init_weights(ThinkingQwen2Config(**TINY, thinking_residual_r_min=0.5))
    a = torch.exp(module())
    assert a.min() >= 0.5 - 1e-5 and a.max() <= 0.999 + 1e-5
    # The standard error of the mean of 4000 uniform draws over .499 is .0023
    assert abs(a.mean() - 0.7495) < 0.01 and abs(a.var() - 0.499**2 / 12) < 0.002


@pytest.mark.parametrize(("given", "expected"), [(None, 24**-0.5), (0.001, 0.001)])
def test_projection_init_std(given, expected):
    torch.manual_seed(0)
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY, thinking_projection_init_std=given))
    assert abs(model.model.thinking_projection.weight.std() / expected - 1) < 0.1


def test_two_layer_projection_keeps_the_published_name_for_its_last_layer():
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY, thinking_projection_layers=2))
    names = {name for name, _ in model.named_parameters() if "thinking_projection" in name}
    assert names == {"model.thinking_projection.weight", "model.thinking_projection.hidden.weight"}


@pytest.mark.parametrize("how", ["from_pretrained", "to", "half", "from_config", "default_dtype"])
def test_thinking_modules_stay_fp32(plain_checkpoint, how):
    config = ThinkingQwen2Config(**TINY)
    if how == "from_pretrained":
        model = load_thinking_model(plain_checkpoint, dtype=torch.bfloat16)
    elif how == "to":
        model = load_thinking_model(plain_checkpoint).to(torch.bfloat16)
    elif how == "half":
        model = load_thinking_model(plain_checkpoint).half()
    elif how == "from_config":
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    else:
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = ThinkingQwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in thinking(model.named_parameters()).values()} == {torch.float32}
    assert model.lm_head.weight.dtype in (torch.bfloat16, torch.float16)


def test_casting_keeps_the_values_of_thinking_modules(plain_checkpoint):
    model = load_thinking_model(plain_checkpoint)
    before = {name: p.clone() for name, p in thinking(model.named_parameters()).items()}
    model.to(torch.bfloat16)
    assert all(torch.equal(before[name], p) for name, p in thinking(model.named_parameters()).items())


def test_half_precision_copies_of_thinking_modules_compute_in_the_dtype_of_their_input(plain_checkpoint):
    """As wrappers that shard hand them out."""
    base = load_thinking_model(plain_checkpoint, thinking_projection_layers=2).model
    inputs = torch.randn(2, 3, base.config.hidden_size, generator=torch.Generator().manual_seed(1))
    for module in (base.thinking_residual_gate_r, base.thinking_projection, base.thinking_residual_Lambda):
        given = () if module is base.thinking_residual_Lambda else (inputs,)
        expected = module(*given)
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16()
        found = module(*given)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_bf16_checkpoint_reloads_bit_equal(plain_checkpoint, tmp_path):
    model = load_thinking_model(plain_checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    assert all(
        torch.equal(p, reloaded[name]) and p.dtype == reloaded[name].dtype for name, p in model.state_dict().items()
    )


def test_meta_device_load_takes_the_saved_thinking_weights(plain_checkpoint, tmp_path):
    model = load_thinking_model(plain_checkpoint)
    for parameter in thinking(model.named_parameters()).values():
        torch.nn.init.constant_(parameter, 0.25)
    model.save_pretrained(tmp_path)
    reloaded = load_thinking_model(str(tmp_path), device_map="cpu")
    assert all(bool((p == 0.25).all()) for p in thinking(reloaded.named_parameters()).values())


def test_switching_the_mode_keeps_all_weights(plain_checkpoint, tmp_path):
    model = load_thinking_model(plain_checkpoint)
    model.config.thinking_mode = "none"
    model.save_pretrained(tmp_path)
    switched = load_thinking_model(str(tmp_path), thinking_mode="embedding")
    switched.save_pretrained(tmp_path)
    back = load_thinking_model(str(tmp_path), thinking_mode="projection")
    before = model.state_dict()
    assert all(torch.equal(before[name], p) for name, p in back.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_mode": "latent"}, "must be one of 'projection', 'embedding', 'soft', .*'none', got 'latent'"),
        (
            {"thinking_residual_r_min": 0.999, "thinking_residual_r_max": 0.99},
            "0 < r_min < r_max < 1, got 0.999 and 0.99",
        ),
        ({"thinking_residual_r_min": 0.99, "thinking_residual_r_max": 0.99}, "0 < r_min < r_max < 1"),
        ({"thinking_residual_c": 0}, "must be positive, got 0"),
        ({"thinking_projection_layers": 3}, "must be one of 1, 2, got 3"),
        ({"thinking_projection_norm": "rms"}, "got 'rms'"),
        ({"thinking_projection_dropout": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"thinking_projection_init_std": 0.0}, "must be positive or None, got 0.0"),
        ({"thinking_answer_start": ""}, "must not be empty"),
        ({"thinking_residual_rmin": 0.9}, "did you mean `thinking_residual_r_min`"),
        ({"thinkng_mode": "none"}, "did you mean `thinking_mode`"),
    ],
)
def test_bad_field_is_an_error_that_names_it(fields, message):
    with pytest.raises(ValueError, match=message):
        ThinkingQwen2Config(**TINY, **fields)


def test_foreign_config_keys_are_accepted():
    assert ThinkingQwen2Config(**TINY, some_vendor_key=3).some_vendor_key == 3


def test_mode_assigned_wrongly_is_an_error_in_the_forward(plain_checkpoint, states_and_mask):
    model = load_thinking_model(plain_checkpoint)
    model.config.thinking_mode = "latent"
    states, mask = states_and_mask
    with pytest.raises(ValueError, match="got 'latent'"):
        model(torch.arange(3, 17).view(2, 7), thinking_states=states, thinking_mask=mask)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (2, 8)])
def test_mask_of_a_wrong_shape_is_an_error(plain_checkpoint, states_and_mask, shape):
    model = load_thinking_model(plain_checkpoint)
    with pytest.raises(ValueError, match="`thinking_states` must be"):
        model(
            torch.arange(3, 17).view(2, 7), thinking_states=states_and_mask[0], thinking_mask=torch.ones(shape).bool()
        )


def test_a_type_that_cannot_think_is_refused_with_the_check_that_fails(tmp_path):
    Qwen3Config(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads checkpoints of type `qwen2`"):
        ThinkingQwen2ForCausalLM.from_pretrained(tmp_path)
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=f"`{tmp_path}` is a checkpoint of type `gpt2`, which cannot think: .* fails the check `replay`",
    ):
        load_thinking_model(str(tmp_path))


def test_truncated_weights_are_an_error_that_names_the_file(plain_checkpoint, tmp_path):
    model = load_thinking_model(plain_checkpoint)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(OSError, match=r"model\.safetensors.*cut short"):
        load_thinking_model(str(tmp_path))


def test_llama_family_is_bit_equal_to_its_base(tmp_path):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**TINY))
    base.save_pretrained(tmp_path)
    input_ids = torch.arange(3, 17).view(2, 7)
    assert torch.equal(load_thinking_model(str(tmp_path))(input_ids).logits, base(input_ids).logits)


def test_registering_again_changes_nothing():
    before = dict(CONFIG_MAPPING._extra_content)
    register_models()
    assert dict(CONFIG_MAPPING._extra_content) == before


def test_foreign_owner_of_a_model_type_is_an_error_that_names_both(monkeypatch):
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "thinking_qwen2", LlamaConfig)
    with pytest.raises(ValueError, match=r"ThinkingQwen2Config is already registered by .*LlamaConfig"):
        register_models()


@pytest.mark.slow
def test_hub_round_trip_without_the_package(tmp_path):
    input_ids, thoughts = torch.arange(3, 17).view(2, 7), {"thinking_states": torch.ones(2, 3, 24)}
    thoughts["thinking_mask"] = torch.ones(2, 3).bool()
    expected = {}
    for cls in (TestThinkingLlama, TestThinkingQwen2, TestThinkingQwen3):
        model = cls.make_model()
        model.config.thinking_answer_start = None
        with hub_code(model):
            model.save_pretrained(tmp_path / cls.__name__)
        assert "auto_map" not in model.config.to_dict() and not type(model).is_remote_code()
        expected[cls.__name__] = model(input_ids, **thoughts).logits.detach()
    torch.save({"input_ids": input_ids, "thoughts": thoughts, "logits": expected}, tmp_path / "expected.pt")
    script = """
        from transformers import AutoModelForCausalLM
        saved = torch.load("expected.pt", weights_only=True)
        for name, expected in saved["logits"].items():
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
            logits = model(saved["input_ids"], **saved["thoughts"]).logits
            assert torch.equal(logits, expected), (name, (logits - expected).abs().max())
            assert model.generate(saved["input_ids"], max_new_tokens=3, min_new_tokens=3).shape == (2, 10), name
    """
    run_without_package(script, tmp_path)


def test_every_thinking_module_is_named_as_published():
    model = TestThinkingQwen2.make_model()
    assert {name.split(".")[1] for name in thinking(model.named_parameters())} == set(THINKING_MODULES[:4])
