"""The bottleneck adapter as a method of peft: built, trained, saved, loaded, switched and deleted like LoRA."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from tiny_models import TINY
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.peft.houlsby import TARGET_MODULES, HoulsbyConfig, HoulsbyModel, register_houlsby
from hf_evidenceflow.peft.houlsby_layer import HoulsbyLayer
from hf_evidenceflow.peft.registration import is_registered, register_method


IDS = torch.arange(2, 22).view(2, 10)
MAPPINGS = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)


@pytest.fixture(autouse=True)
def registered():
    with register_houlsby():
        yield


def base_model(**kwargs) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY, **kwargs)).eval()


def adapted(**kwargs) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(base_model(), HoulsbyConfig(bottleneck_size=5, task_type="CAUSAL_LM", **kwargs)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def train(model: nn.Module, steps: int = 2) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# The layer


def test_the_layer_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    linear = nn.Linear(3, 7)
    layer = HoulsbyLayer(linear, "default", HoulsbyConfig(bottleneck_size=2, non_linearity="tanh", up_init_std=0.5))
    x = torch.randn(5, 3)
    down, up = layer.houlsby_down["default"], layer.houlsby_up["default"]
    y = x @ linear.weight.T + linear.bias
    expected = y + torch.tanh(y @ down.weight.T + down.bias) @ up.weight.T + up.bias
    torch.testing.assert_close(layer(x), expected)


def test_a_reduction_gives_the_width_that_the_layer_has_over_it():
    assert HoulsbyConfig(reduction=3).width(23) == 7
    assert HoulsbyConfig(reduction=64).width(24) == 1
    assert HoulsbyConfig(reduction=3, bottleneck_size=5).width(23) == 5


def test_the_first_projection_is_cut_off_at_two_standard_deviations():
    torch.manual_seed(0)
    layer = HoulsbyLayer(nn.Linear(3, 200), "default", HoulsbyConfig(bottleneck_size=50, init_std=0.03))
    weight = layer.houlsby_down["default"].weight
    assert 0.055 < weight.abs().max() <= 0.06
    # A normal distribution cut off at two standard deviations has 0.88 of its standard deviation
    assert weight.std().item() == pytest.approx(0.88 * 0.03, rel=0.05)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer = HoulsbyLayer(nn.Linear(3, 7), "default", HoulsbyConfig(bottleneck_size=5, dropout=0.5, up_init_std=0.5))
    x = torch.randn(11, 3)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# In a model


def test_the_model_starts_as_the_base_model_bit_by_bit_and_leaves_it_with_a_step():
    model = adapted()
    assert torch.equal(logits(model), logits(base_model()))
    train(model)
    assert (logits(model) - logits(base_model())).abs().max() > 1e-3


def test_with_the_papers_initialisation_it_starts_near_the_base_model():
    difference = (logits(adapted(up_init_std=0.01)) - logits(base_model())).abs().max()
    assert 0 < difference < 0.05


def test_training_moves_the_adapters_and_nothing_else():
    model = adapted()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, steps=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != ("houlsby_" in name), name


def test_the_trainable_parameters_are_those_of_the_formula():
    d, m, layers = TINY["hidden_size"], 5, TINY["num_hidden_layers"]
    trainable, _ = adapted().get_nb_trainable_parameters()
    assert trainable == 2 * layers * (2 * d * m + m + d)


@pytest.mark.parametrize("model_type", sorted(TARGET_MODULES))
def test_each_known_model_type_gets_two_adapters_a_block(model_type):
    sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "ffn_dim": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "word_embed_proj_dim": 24}
    sizes |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    known = AutoConfig.for_model(model_type).to_dict()
    config = AutoConfig.for_model(model_type, **{name: value for name, value in sizes.items() if name in known})
    model = get_peft_model(AutoModel.from_config(config), HoulsbyConfig(bottleneck_size=5))
    layers = [name for name, module in model.named_modules() if isinstance(module, HoulsbyLayer)]
    assert len(layers) == 2 * 3
    assert {model.get_submodule(name).out_features for name in layers} == {24}


def test_modules_to_save_are_trained_and_saved(tmp_path):
    model = adapted(modules_to_save=["input_layernorm"])
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model(), tmp_path)
    norm = loaded.base_model.model.model.layers[1].input_layernorm.modules_to_save["default"].weight
    assert not torch.equal(norm, torch.ones_like(norm))
    torch.testing.assert_close(logits(loaded), logits(model), atol=0, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(up_init_std=0.1).train()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(gradient is not None for gradient in gradients[0])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


def test_adapters_of_a_bfloat16_model_are_kept_in_float32_and_leave_its_dtype():
    model = get_peft_model(base_model().to(torch.bfloat16), HoulsbyConfig(bottleneck_size=5, task_type="CAUSAL_LM"))
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    assert torch.equal(logits(model), logits(base_model().to(torch.bfloat16)))
    train(model)
    assert not torch.equal(logits(model), logits(base_model().to(torch.bfloat16)))


# Saving, loading, switching


def test_a_saved_adapter_gives_the_same_logits_in_a_new_model(tmp_path):
    model = adapted()
    train(model)
    model.save_pretrained(tmp_path)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {path.name for path in tmp_path.iterdir()}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "HOULSBY" and config["bottleneck_size"] == 5
    loaded = PeftModel.from_pretrained(base_model(), tmp_path).eval()
    assert isinstance(loaded.base_model, HoulsbyModel)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(base_model()))


def test_only_the_adapters_are_saved(tmp_path):
    from safetensors import safe_open

    adapted().save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == 2 * TINY["num_hidden_layers"] * 4
    assert all("houlsby_" in name and "default" not in name for name in names)


def test_the_auto_class_loads_base_model_and_adapter(tmp_path):
    base_model().save_pretrained(tmp_path / "base")
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path / "base"), HoulsbyConfig(bottleneck_size=5, task_type="CAUSAL_LM")
    )
    train(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_without_the_adapter_it_is_the_base_model_and_then_itself_again():
    model = adapted()
    train(model)
    tuned = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base_model()))
    assert torch.equal(logits(model), tuned)


def test_two_adapters_are_switched_and_one_is_deleted():
    model = adapted()
    train(model)
    first = logits(model)
    model.add_adapter("second", HoulsbyConfig(bottleneck_size=3, task_type="CAUSAL_LM"))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(base_model()))
    train(model)
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model), second)
    assert not any("default" in name for name, _ in model.named_modules())


def test_only_the_active_adapter_is_trainable():
    model = adapted()
    model.add_adapter("second", HoulsbyConfig(bottleneck_size=3))
    for active in ("default", "second", "default"):
        model.set_adapter(active)
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trainable and all(f".{active}." in name for name in trainable)


def test_two_active_adapters_at_once_are_refused():
    model = adapted()
    model.add_adapter("second", HoulsbyConfig(bottleneck_size=3))
    with pytest.raises(ValueError, match=r"One bottleneck adapter.*got \['default', 'second'\]"):
        model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_with_the_reason_and_changes_nothing(method):
    # The embeddings come first: peft would have put them in their place before the first adapter says no
    model = adapted(modules_to_save=["embed_tokens"])
    train(model)
    tuned = logits(model)
    with pytest.raises(ValueError, match=r"not linear.*`unload\(\)`"):
        getattr(model, method)()
    assert torch.equal(logits(model), tuned)


def test_unloading_gives_the_base_model_back():
    model = adapted()
    train(model)
    unloaded = model.unload()
    assert not any(isinstance(module, HoulsbyLayer) for module in unloaded.modules())
    assert torch.equal(logits(unloaded), logits(base_model()))


# What is refused


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bottleneck_size", 0, "`bottleneck_size` must be at least 1, got 0"),
        ("reduction", 0, "`reduction` must be at least 1, got 0"),
        ("dropout", 1.0, r"`dropout` must be in \[0, 1\), got 1.0"),
        ("dropout", -0.1, r"`dropout` must be in \[0, 1\), got -0.1"),
        ("init_std", -0.2, "`init_std` must not be negative, got -0.2"),
        ("up_init_std", -0.3, "`up_init_std` must not be negative, got -0.3"),
        ("init_std", 0.0, "both 0"),
        ("non_linearity", "gelo", "`non_linearity` must be one of .*got 'gelo'"),
    ],
)
def test_a_wrong_value_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        HoulsbyConfig(**{field: value})


def test_an_unknown_target_is_named_even_beside_a_known_one():
    with pytest.raises(ValueError, match="'down_porj' is not in the model. Did you mean 'down_proj'"):
        adapted(target_modules=["o_proj", "down_porj"])


def test_an_unknown_pattern_is_named():
    with pytest.raises(ValueError, match="nothing_like_this"):
        adapted(target_modules=".*nothing_like_this")


def test_another_layer_than_a_linear_one_is_refused_with_its_name():
    with pytest.raises(ValueError, match="'model.embed_tokens' is a torch.nn.modules.sparse.Embedding"):
        adapted(target_modules=["embed_tokens"])


def test_a_layer_with_another_adapter_is_refused():
    model = get_peft_model(base_model(), LoraConfig(target_modules=["o_proj"]))
    with pytest.raises(ValueError, match="o_proj' is a peft.tuners.lora"):
        get_peft_model(model.base_model.model, HoulsbyConfig(target_modules=["o_proj"]))


def test_an_unknown_model_type_needs_its_targets_named():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=24, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="No default `target_modules` for the model type 'gpt2'"):
        get_peft_model(model, HoulsbyConfig())


# Registration


def test_nothing_is_written_into_peft_before_the_call():
    register_houlsby().undo()
    assert not is_registered("HOULSBY")
    with pytest.raises(RuntimeError, match="Call `register_houlsby\\(\\)` first"):
        HoulsbyConfig()


def test_an_undone_registration_leaves_the_mappings_of_peft_as_they_were():
    register_houlsby().undo()
    before = [dict(mapping) for mapping in MAPPINGS]
    with register_houlsby():
        assert [dict(mapping) for mapping in MAPPINGS] != before
    assert [dict(mapping) for mapping in MAPPINGS] == before


def test_registering_and_undoing_twice_is_harmless():
    first, second = register_houlsby(), register_houlsby()
    assert isinstance(adapted().base_model, HoulsbyModel)
    first.undo()
    second.undo()
    assert not is_registered("HOULSBY")


def test_the_type_is_found_by_its_name():
    assert HoulsbyConfig().peft_type == "HOULSBY" and HoulsbyConfig().peft_type.value == "HOULSBY"
    assert "HOULSBY" not in PeftType.__members__


def test_a_name_that_is_taken_is_refused_with_its_owner():
    with pytest.raises(RuntimeError, match=r"already has a method 'LORA', peft\.tuners\.lora.*LoraConfig"):
        register_method("LORA", HoulsbyConfig, HoulsbyModel, "houlsby_")
