"""What HRPOTrainer does to an adapter's config and to sharded thinking modules before it trains."""

from types import SimpleNamespace

import pytest
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from tiny_models import TINY

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES
from hf_evidenceflow.trainers.hrpo_setup import (
    prepare_thinking_parameters,
    shard_thinking_modules,
    with_thinking_modules,
)


def test_with_thinking_modules_keeps_the_users_choices():
    config = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])
    extended = with_thinking_modules(config, THINKING_METHODS["embedding"])
    assert config.modules_to_save == ["lm_head"]
    assert extended.modules_to_save == ["lm_head", *THINKING_MODULES[:3]]
    model = get_peft_model(ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)), extended)
    assert not [name for name, _ in model.named_parameters() if "lora" in name and "thinking" in name]


METHODS_OF_PEFT = [
    (LoraConfig, {"use_dora": True}, None),
    (IA3Config, {}, None),
    (LoHaConfig, {}, None),
    (LoKrConfig, {}, None),
    (VeraConfig, {"r": 4}, None),
    (AdaLoraConfig, {"total_step": 10}, None),
    (OFTConfig, {"oft_block_size": 4}, None),
    (PromptTuningConfig, {"num_virtual_tokens": 2}, "virtual tokens"),
    (PrefixTuningConfig, {"num_virtual_tokens": 2}, "virtual tokens"),
    (PromptEncoderConfig, {"num_virtual_tokens": 2}, "virtual tokens"),
    (AdaptionPromptConfig, {}, "cannot train modules in full"),
    (TrainableTokensConfig, {"token_indices": [3]}, "cannot train modules in full"),
]


@pytest.mark.parametrize(
    ("method", "settings", "refused"), METHODS_OF_PEFT, ids=lambda item: getattr(item, "__name__", "")
)
def test_each_method_of_peft_trains_the_thinking_modules_or_is_refused_by_name(method, settings, refused):
    if refused:
        with pytest.raises(ValueError, match=f"{method.__name__}.*{refused}.*LoraConfig"):
            with_thinking_modules(method(**settings), THINKING_METHODS["projection"])
        return
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY))
    model = get_peft_model(model, with_thinking_modules(method(**settings), THINKING_METHODS["projection"]))
    prepare_thinking_parameters(model, THINKING_METHODS["projection"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("thinking" not in name for name in trained)
    assert not [name for name in trained if "thinking" in name and "modules_to_save" not in name]


def accelerator(mixed_precision, ram_efficient, is_fsdp2=True):
    plugin = SimpleNamespace(cpu_ram_efficient_loading=ram_efficient)
    state = SimpleNamespace(fsdp_plugin=plugin, deepspeed_plugin=None)
    return SimpleNamespace(is_fsdp2=is_fsdp2, mixed_precision=mixed_precision, state=state)


def test_loading_on_one_process_is_refused_in_half_precision():
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY))
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading=True.*'bf16'.*Set it to false"):
        shard_thinking_modules(model, accelerator("bf16", ram_efficient=True))


@pytest.mark.parametrize("settings", [("no", True), ("bf16", True, False)])
def test_nothing_is_sharded_without_fsdp2_or_in_full_precision(settings):
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY))
    shard_thinking_modules(model, accelerator(*settings))
    assert type(model.model.thinking_projection).__name__ == "ThinkingProjection"


@pytest.mark.parametrize("active, trained", [("thinks", True), ("default", False)])
def test_only_the_active_adapters_copies_of_thinking_modules_count_as_trained(active, trained):
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)), config)
    model.add_adapter("thinks", with_thinking_modules(config, THINKING_METHODS["projection"]))
    model.set_adapter(active)
    copies = {name: p for name, p in model.named_parameters() if "modules_to_save.thinks" in name}
    for parameter in copies.values():
        parameter.requires_grad_(True)
    if trained:
        prepare_thinking_parameters(model, THINKING_METHODS["projection"])
    else:
        with pytest.raises(ValueError, match=r"not trained by the active adapter \['default'\]"):
            prepare_thinking_parameters(model, THINKING_METHODS["projection"])
    assert {parameter.requires_grad for parameter in copies.values()} == {trained}
