"""The cross-layer Llama as a transformers model: config, loading, initial weights, training, saving with its code."""

import pytest
import torch
from causal_lm_checks import CausalLMChecks
from hub_round_trip import run_without_package
from peft import LoraConfig, get_peft_model
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Trainer, TrainingArguments

from hf_evidenceflow.models.crosslayer.configuration_crosslayer import VARIANTS, CrossLayerLlamaConfig
from hf_evidenceflow.models.crosslayer.extra_parameters import extra_parameters
from hf_evidenceflow.models.crosslayer.modeling_crosslayer import CrossLayerLlamaForCausalLM
from hf_evidenceflow.models.declared import no_decay_names
from hf_evidenceflow.models.decoder import decoder_parts, record_layer_states
from hf_evidenceflow.models.hub import hub_code


IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
WIDE = {**TINY, "initializer_range": 0.2}


def make_model(variant=None, seed=7, **fields):
    torch.manual_seed(seed)
    return CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**WIDE, variant=variant, **fields)).eval()


def move(model, seed=3):
    """Extra parameters away from their init."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in extra_parameters(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model):
    model.zero_grad()
    model(IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class TestStoredOutputs(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_model("v2m3", tie_word_embeddings=True)


class TestRecomputedOutputs(CausalLMChecks):
    takes_prefix = False

    @staticmethod
    def make_model():
        return make_model("v3m4_2")


class TestSummedScores(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_model("v4m6")


class TestEarlierStates(CausalLMChecks):
    @staticmethod
    def make_model():
        return make_model("denseformer")


class TestConstrainedStreams(CausalLMChecks):
    @staticmethod
    def make_model():
        return move(make_model("mhc"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder with a plain tiny Llama of 5 layers."""
    path = tmp_path_factory.mktemp("plain-llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**WIDE | {"num_hidden_layers": 5})).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_base_is_bit_equal_to_llama(implementation):
    torch.manual_seed(7)
    expected = LlamaForCausalLM(LlamaConfig(**WIDE))
    model = make_model("base")
    for each in (expected, model):
        each.set_attn_implementation(implementation)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    for name, gradient in gradients(expected).items():
        assert torch.equal(gradients(model)[name], gradient), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_seed_gives_every_variant_the_weights_of_llama(variant):
    torch.manual_seed(7)
    expected = LlamaForCausalLM(LlamaConfig(**WIDE)).state_dict()
    model = make_model(variant)
    state = model.state_dict()
    assert state.keys() - expected.keys() == extra_parameters(model).keys()
    for name, weight in expected.items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize(
    ("variant", "equal"),
    [
        ("v2m3", "v2m1"),
        ("v3m3_2", "v3m3_1"),
        ("v3m4_2", "v3m4_1"),
        ("v4m4", "v4m3"),
        ("v4m5", "v4m1"),
        ("v4m6", "v4m1"),
        ("v4m7", "v4m1"),
        ("denseformer", "base"),
        ("depth_attention", "base"),
        ("hyper_connections", "base"),
        ("mhc", "base"),
        ("block_attention", "base"),
    ],
)
def test_at_init_the_learned_variant_equals_the_fixed_one(variant, equal):
    torch.testing.assert_close(make_model(variant)(IDS).logits, make_model(equal)(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["v2m3", "v3m3_2"])
def test_mlp_weights_have_the_published_names_and_shapes(variant):
    shapes = {name: tuple(p.shape) for name, p in extra_parameters(make_model(variant)).items()}
    assert shapes == {f"model.layers.{layer}.mlp_residual_weights": (layer + 1,) for layer in (1, 2)}


def test_attention_weights_have_the_published_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in extra_parameters(make_model("v3m4_2")).items()}
    assert shapes == {f"model.layers.{layer}.attn_residual_weights": (layer + 1,) for layer in (1, 2)}


@pytest.mark.parametrize(
    ("variant", "names"),
    [("v4m4", ("score_a", "score_b")), ("v4m5", ("score_log_a",)), ("v4m6", ("score_log_a", "score_b"))],
)
def test_score_parameters_have_the_published_names_and_shapes(variant, names):
    shapes = {name: tuple(p.shape) for name, p in extra_parameters(make_model(variant)).items()}
    assert shapes == {
        f"model.layers.{layer}.self_attn.{name}": () if variant == "v4m4" else (layer + 1,)
        for layer in range(3)
        for name in names
    }


def test_first_layers_depth_exponent_has_no_gradient():
    model = move(make_model("v4m4"))
    found = {name: gradient.item() for name, gradient in gradients(model).items() if name.endswith("score_b")}
    first = found.pop("model.layers.0.self_attn.score_b")
    assert first == 0 and all(abs(gradient) > 1e-6 for gradient in found.values()), found


@pytest.mark.parametrize("variant", VARIANTS)
def test_plain_llama_loads_and_misses_only_the_extra_parameters(llama, variant):
    model, info = CrossLayerLlamaForCausalLM.from_pretrained(llama, variant=variant, output_loading_info=True)
    assert model.config.variant == variant and model.config.model_type == "crosslayer_llama"
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert info["missing_keys"] == extra_parameters(model).keys()
    torch.manual_seed(1)
    fresh = CrossLayerLlamaForCausalLM(model.config)
    for name, parameter in extra_parameters(fresh).items():
        assert torch.equal(extra_parameters(model)[name], parameter), name


# What waits a step or longer for a gradient: a softmax over one score, what is behind a gate at 0, scales of weights
# that are 0; while all streams are the same, shares of them in what a norm reads
WAITS = {
    "v4m4": ("score_",),
    "block_attention_normed": ("depth_query",),
    "hyper_connections": ("hyper_scale", "hyper_input"),
    "mhc": ("hyper_scale", "last_connection"),
}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "base"])
def test_identity_init_is_close_to_llama_and_keeps_gradients(llama, variant):
    expected = LlamaForCausalLM.from_pretrained(llama)(IDS).logits
    model = CrossLayerLlamaForCausalLM.from_pretrained(llama, variant=variant, identity_init=True)
    logits = model(IDS).logits
    # A softmax or sum of scores leaves earlier layers 0.001 in each layer
    assert (logits - expected).norm() / expected.norm() < 2.5e-3
    found = gradients(model)
    for name in extra_parameters(model):
        if not any(part in name for part in WAITS.get(variant, ())):
            assert found[name].abs().max() > 1e-6, name


def test_identity_init_takes_the_gate_only_where_there_is_no_other_way():
    configs = [CrossLayerLlamaConfig(**TINY, variant=name, identity_init=True) for name in VARIANTS]
    gated = {config.variant for config in configs if config.cross_layer_gate}
    assert gated == {
        "v2m1", "v2m2", "v3m1", "v3m2", "v3m3_1", "v3m4_1", "v4m1", "v4m2", "v4m3", "v4m4",
        "block_attention_normed",
    }  # fmt: skip


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("base", "hyper_connections", "mhc")])
def test_an_open_gate_gives_the_variant(variant):
    model, gated = make_model(variant), make_model(variant, cross_layer_gate=True)
    with torch.no_grad():
        for name, parameter in extra_parameters(gated).items():
            if name.endswith("cross_layer_gate"):
                parameter.fill_(1.0)
    torch.testing.assert_close(gated(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["v2m1", "v3m4_1", "v4m2", "v4m4"])
def test_a_closed_gate_gives_llama(variant):
    logits = make_model(variant, cross_layer_gate=True)(IDS).logits
    torch.testing.assert_close(logits, make_model("base")(IDS).logits, rtol=1e-5, atol=1e-5)


def test_value_residual_with_the_weight_on_the_own_values_is_llama():
    model = make_model("value_residual", identity_init=True)
    assert torch.equal(model(IDS).logits, make_model("base")(IDS).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parts_of_a_variant_give_that_variant(variant):
    parts = {"cross_layer_stream": "none"} | VARIANTS[variant]
    model = make_model(None, **parts)
    assert model.config.variant == "custom"
    assert torch.equal(move(model)(IDS).logits, move(make_model(variant))(IDS).logits)


CUSTOM = [
    {"cross_layer_stream": "attention", "cross_layer_combination": "linear"},
    {"cross_layer_stream": "mlp", "cross_layer_combination": "depth_attention", "cross_layer_terms": "recomputed"},
    {"cross_layer_stream": "attention", "cross_layer_combination": "softmax", "cross_layer_sources": "first"},
    {"cross_layer_stream": "values", "cross_layer_combination": "mean", "cross_layer_gate": True},
    {"cross_layer_stream": "states", "cross_layer_combination": "softmax", "identity_init": True},
    {"cross_layer_stream": "scores", "score_scaling": "source", "score_depth_exponent": 0.5},
    {"cross_layer_stream": "streams", "cross_layer_combination": "linear", "num_residual_streams": 2},
    {"cross_layer_stream": "blocks", "cross_layer_combination": "linear", "layers_per_block": 2},
]


@pytest.mark.parametrize("parts", CUSTOM)
def test_a_new_combination_of_parts_trains(parts):
    model = make_model(**parts).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in extra_parameters(model).items()}
    losses = []
    for _ in range(6):
        loss = model(IDS, labels=IDS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in extra_parameters(model).items()) and before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "base"])
def test_gradient_checkpointing_gives_the_same_gradients(variant, reentrant):
    model = move(make_model(variant)).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # v4m1 to v4m4 sum their scores in another order when checkpointed
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "variant", ["v2m3", "v3m1", "v4m4", "v4m5", "depth_attention", "hyper_connections", "mhc", "block_attention"]
)
def test_bf16_is_near_fp32_and_leaves_the_extra_parameters_in_fp32(llama, variant, tmp_path):
    model = CrossLayerLlamaForCausalLM.from_pretrained(llama, variant=variant, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    for each in (model, CrossLayerLlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        assert all(p.dtype == torch.float32 for p in extra_parameters(each).values())
        loss = each(IDS, labels=IDS).loss
        loss.backward()
    expected = CrossLayerLlamaForCausalLM.from_pretrained(llama, variant=variant)(IDS, labels=IDS).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)  # bf16 has 3 digits


@pytest.mark.parametrize("variant", ["v2m2", "v3m1", "v4m5", "hyper_connections", "block_attention"])
def test_lora_computes_what_its_merged_model_does(variant):
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    model = get_peft_model(make_model(variant), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted = model(IDS).logits
    assert (adapted - make_model(variant)(IDS).logits).abs().max() > 0.01
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, adapted, rtol=1e-4, atol=1e-4)


def test_resized_tied_embeddings_stay_tied():
    model = make_model("v2m3", tie_word_embeddings=True)
    model.resize_token_embeddings(101)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(IDS).logits.shape[-1] == 101


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "v3m1", "v4m4"])
def test_compiles_to_one_graph(variant):
    model = make_model(variant)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IDS, use_cache=False).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "variant", ["base", "v2m1", "v3m1", "v4m5", "depth_attention", "hyper_connections", "mhc", "block_attention"]
)
def test_layer_tools_find_the_layers_and_their_states(variant):
    model = move(make_model(variant))
    parts = decoder_parts(model)
    assert parts.layers_name == "model.layers" and len(parts.layers) == 3
    with record_layer_states(parts) as states:
        outputs = model(IDS, output_hidden_states=True)
    assert torch.equal(parts.readout(states[-1]), outputs.logits)
    assert all(torch.equal(a, b) for a, b in zip(states[:-1], outputs.hidden_states[1:-1]))


@torch.no_grad()
def test_eager_attention_returns_the_probabilities_of_summed_scores():
    model = make_model("v4m1", attn_implementation="eager")
    attentions = model(IDS, output_attentions=True).attentions
    assert [probabilities.shape for probabilities in attentions] == [(2, 4, 7, 7)] * 3
    torch.testing.assert_close(attentions[2].sum(-1), torch.ones(2, 4, 7))


@pytest.mark.parametrize("variant", ["v2m3", "v3m4_2", "v4m4", "v4m6", "denseformer", "depth_attention", "mhc"])
def test_trainers_decay_names_without_ours_are_those_of_llama(variant, tmp_path):
    trainer = Trainer(make_model(variant), TrainingArguments(tmp_path, report_to=[]))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert no_decay_names(trainer.model) <= decayed  # else this function is not needed
    plain = LlamaForCausalLM(LlamaConfig(**TINY))
    assert decayed - no_decay_names(trainer.model) == set(trainer.get_decay_parameter_names(plain))


def test_extra_parameters_are_found_in_a_wrapped_model():
    model = get_peft_model(make_model("v4m4"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert len(extra_parameters(model)) == 6
    assert all(name.startswith("base_model.model.model.layers.") for name in extra_parameters(model))


def test_a_saved_variant_can_be_loaded_as_another(tmp_path):
    make_model("v2m3").save_pretrained(tmp_path)
    assert CrossLayerLlamaForCausalLM.from_pretrained(tmp_path).config.variant == "v2m3"
    other = CrossLayerLlamaForCausalLM.from_pretrained(tmp_path, variant="v4m7")
    assert other.config.cross_layer_combination == "sum" and other.config.score_head_exponent == 0
    part = CrossLayerLlamaForCausalLM.from_pretrained(tmp_path, cross_layer_combination="mean")
    assert part.config.variant == "custom" and part.config.cross_layer_stream == "mlp"


def test_a_wrong_variant_lists_the_right_ones(llama):
    for make in (
        lambda: CrossLayerLlamaConfig(variant="v2m9"),
        lambda: CrossLayerLlamaForCausalLM.from_pretrained(llama, variant="v2m9"),
    ):
        with pytest.raises(ValueError, match="v2m9") as error:
            make()
        assert all(name in str(error.value) for name in VARIANTS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "v2m1", "cross_layer_combination": "softmax"}, "`cross_layer_combination` is 'mean' in variant"),
        ({"variant": "base", "cross_layer_stream": "mlp"}, "`cross_layer_stream` is 'none' in variant"),
        ({"cross_layer_stream": "tokens"}, "must be one of 'none', 'mlp'"),
        ({"cross_layer_stream": "mlp", "score_scaling": "source"}, "`score_scaling`='source' has no effect"),
        ({"cross_layer_stream": "scores", "cross_layer_combination": "mean"}, "has no effect"),
        ({"cross_layer_combination": "mean"}, "has no effect with `cross_layer_stream`='none'"),
        ({"cross_layer_stream": "states", "cross_layer_terms": "recomputed"}, "has no effect"),
        ({"cross_layer_stream": "values", "cross_layer_combination": "depth_attention"}, "does not go with 'values'"),
        ({"cross_layer_stream": "mlp", "cross_layer_combination": "sinkhorn"}, "does not go with"),
        ({"cross_layer_stream": "streams"}, "'streams' take 'linear'"),
        ({"variant": "mhc", "cross_layer_gate": True}, "needs a `cross_layer_stream` of terms"),
        ({"variant": "mhc", "num_residual_streams": 1}, "must be at least 2"),
        ({"variant": "v2m1", "layers_per_block": 2}, "`layers_per_block`=2 has no effect"),
        ({"cross_layer_gate": True}, "needs a `cross_layer_stream`"),
        ({"cross_layer_steam": "mlp"}, "did you mean `cross_layer_stream`"),
        ({"score_scalings": "source"}, "did you mean `score_scaling`"),
    ],
)
def test_contradicting_or_unknown_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CrossLayerLlamaConfig(**TINY, **fields)


def test_a_field_assigned_later_is_checked_by_the_model():
    config = CrossLayerLlamaConfig(**TINY, variant="v2m1")
    config.cross_layer_combination = "softmax"
    with pytest.raises(ValueError, match="variant 'v2m1'"):
        CrossLayerLlamaForCausalLM(config)


def test_a_variant_beside_a_config_is_refused(llama):
    config = CrossLayerLlamaConfig.from_pretrained(llama)
    with pytest.raises(ValueError, match="not both"):
        CrossLayerLlamaForCausalLM.from_pretrained(llama, config=config, variant="v2m1")


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    Qwen2Config(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="qwen2"):
        CrossLayerLlamaConfig.from_pretrained(tmp_path)


@pytest.mark.slow
def test_hub_round_trip_without_the_package(tmp_path):
    names = ["v3m4_2", "v4m6", "mhc", "block_attention"]
    expected = {}
    for name in names:
        model = move(make_model(name))
        with hub_code(model):
            model.save_pretrained(tmp_path / name)
        expected[name] = model(IDS).logits.detach()
    torch.save({"input_ids": IDS, "logits": expected}, tmp_path / "expected.pt")
    script = """
        from transformers import AutoModelForCausalLM
        saved = torch.load("expected.pt", weights_only=True)
        for name, expected in saved["logits"].items():
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
            logits = model(saved["input_ids"]).logits
            assert torch.equal(logits, expected), (name, (logits - expected).abs().max())
            assert model.generate(saved["input_ids"], max_new_tokens=3, min_new_tokens=3).shape == (2, 10)
    """
    run_without_package(script, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["v2m1", "v2m3", "value_residual", "denseformer", "depth_attention"])
def test_flex_attention_equals_sdpa_where_scores_are_not_summed(variant):
    model = make_model(variant).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():  # torch's flex attention has no backward pass on CPU
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("flex_attention")
        logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)
