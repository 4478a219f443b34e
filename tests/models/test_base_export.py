import json

import pytest
import torch
from tiny_models import TINY
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

from hf_evidenceflow import ThinkingLlamaConfig, ThinkingLlamaForCausalLM, export_base_model, load_thinking_model


IDS = torch.tensor([[3, 17, 4, 28, 6]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_transformers_loads_the_base_with_the_logits_of_mode_none(plain_checkpoint, tmp_path, dtype):
    model = load_thinking_model(plain_checkpoint, thinking_mode="projection", dtype=dtype).eval()
    export_base_model(model, tmp_path)
    plain, information = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(plain) is Qwen2ForCausalLM and plain.dtype == getattr(torch, dtype)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    model.config.thinking_mode = "none"
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, model(IDS).logits)


def test_no_trace_of_thinking_is_left_in_the_config(plain_checkpoint, tmp_path):
    export_base_model(load_thinking_model(plain_checkpoint), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "qwen2" and config["architectures"] == ["Qwen2ForCausalLM"]
    assert not [name for name in config if "thinking" in name or name == "auto_map"]


def test_tied_embeddings_stay_tied(tmp_path):
    torch.manual_seed(0)
    model = ThinkingLlamaForCausalLM(ThinkingLlamaConfig(**TINY, tie_word_embeddings=True)).eval()
    export_base_model(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, model(IDS).logits)


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="LlamaForCausalLM is no thinking model"):
        export_base_model(LlamaForCausalLM(LlamaConfig(**TINY)), tmp_path)
