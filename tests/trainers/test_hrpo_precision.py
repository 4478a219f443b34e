"""HRPO with adapters and other precisions: what is trained, and what is left after merging and loading again."""

import copy
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from quiet_training import STEP_BY_STEP
from tiny_models import TINY
from transformers import BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base_folder(request, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(**TINY, tie_word_embeddings=request.param, initializer_range=0.3)
    folder = str(tmp_path / "base")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("gap", "stops"), [(0.04, False), (0.2, True)])
def test_in_half_precision_a_run_goes_on_at_the_rounding_of_a_trained_model(
    gap, stops, base_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("hf_evidenceflow.trainers.parity_check.parity_gap", lambda *args: (gap, 0.5))
    with pytest.raises(RuntimeError, match="beyond 0.1") if stops else nullcontext():
        train(base_folder, tmp_path, {"dtype": "bfloat16"})


def train(folder, tmp_path, model_init_kwargs=None, lora=True, **overrides):
    """One step of HRPO with a parity check, at rates that move everything."""
    args = HRPOConfig(
        str(tmp_path / "out"),
        save_strategy="no",
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=7,
        temperature=1.0,
        parity_check_steps=1,
        learning_rate=1e-2,
        warmup_steps=0,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        beta=0.0,
        model_init_kwargs={
            "thinking_residual_r_min": 0.5,
            "thinking_residual_r_max": 0.6,
            **(model_init_kwargs or {}),
        },
        **STEP_BY_STEP | overrides,
    )
    trainer = HRPOTrainer(
        folder,
        lambda completions, **kwargs: [float(len(text) % 3) for text in completions],
        args,
        Dataset.from_dict({"prompt": ["Tom has 3 apples.", "7+2="] * 4}),
        peft_config=LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"]) if lora else None,
    )
    before = {name: tensor.detach().clone() for name, tensor in thinking_parameters(trainer.model)}
    trainer.train()
    for name, tensor in thinking_parameters(trainer.model):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, before[name]), f"{name} has not moved"
    return trainer


def thinking_parameters(model):
    return [
        (name, tensor)
        for name, tensor in model.named_parameters()
        if tensor.requires_grad and any(module in name for module in THINKING_MODULES)
    ]


def logits(model):
    """
    Of tokens with thinking on. In training mode, which is the same without dropout: on a CPU, bitsandbytes evaluates
    with a kernel that refuses layers this narrow.
    """
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, TINY["vocab_size"], (2, 9), generator=random)
    states = torch.randn(2, 4, TINY["hidden_size"], generator=random)
    with torch.no_grad():
        return model.train()(ids, thinking_states=states, thinking_mask=torch.ones(2, 4, dtype=torch.bool)).logits


def test_a_merged_adapter_keeps_logits_and_thinking(base_folder, tmp_path):
    model = train(base_folder, tmp_path).model
    expected = logits(model)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    loaded = load_thinking_model(str(tmp_path / "merged"))
    assert loaded.model.thinking_residual_Lambda.Lambda.dtype == torch.float32
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == loaded.config.tie_word_embeddings
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_a_head_in_fp32_over_a_bf16_base(base_folder, tmp_path, lora):
    arguments = base_folder, tmp_path, {"dtype": "bfloat16"}, lora
    if lora and base_folder_is_tied(base_folder):
        with pytest.raises(ValueError, match="tied embeddings is not supported by TRL"):
            train(*arguments, cast_lm_head_to_fp32=True)
        return
    trainer = train(*arguments, cast_lm_head_to_fp32=True)
    gaps = [row["thinking/parity_gap_mean"] for row in trainer.state.log_history if "thinking/parity_gap_mean" in row]
    assert len(gaps) == 2 and max(gaps) <= 2e-2


CASES = {
    "lora": ({}, True, {}),
    "lora-bf16-autocast": ({}, True, {"bf16": True}),
    "lora-bf16-base": ({"dtype": "bfloat16"}, True, {}),
    "lora-bf16-base-autocast": ({"dtype": "bfloat16"}, True, {"bf16": True}),
    "full-bf16-base": ({"dtype": "bfloat16"}, False, {}),
    "full-bf16-base-fp32-head": ({"dtype": "bfloat16"}, False, {"cast_lm_head_to_fp32": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_gives_the_logits_of_the_trained_one(base_folder, tmp_path, case):
    model_init_kwargs, lora, overrides = CASES[case]
    if "head" in case and base_folder_is_tied(base_folder):
        pytest.skip("TRL's hook on tied embeddings rounds them to bf16 for as long as the trained model lives")
    # Weights this wide make bf16's rounding larger than in a real model
    trainer = train(base_folder, tmp_path, model_init_kwargs, lora, parity_tolerance=5e-2, **overrides)
    trainer.save_model(tmp_path / "saved")
    dtype = model_init_kwargs.get("dtype", "float32") if lora else "float32"
    loaded = load_thinking_model(str(tmp_path / "saved"), dtype=dtype)
    # In fp32 and without autocast: what is left is a difference of weights
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    torch.testing.assert_close(logits(loaded.float()), logits(trained.float()), atol=1e-5, rtol=1e-5)


def base_folder_is_tied(folder):
    return Qwen2Config.from_pretrained(folder).tie_word_embeddings


def test_an_adapter_over_a_4_bit_base(plain_checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = train(plain_checkpoint, tmp_path, {"quantization_config": quantization}).model
    assert type(model.get_base_model().model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert type(model.get_base_model().model.thinking_residual_gate_r.original_module).__name__ == "ThinkingGate"
    model.save_pretrained(tmp_path / "adapter")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # TRL trains them in bf16, PEFT loads them in fp32
    expected = logits(model)
    loaded = load_thinking_model(plain_checkpoint, quantization_config=quantization, dtype="float32")
    loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
