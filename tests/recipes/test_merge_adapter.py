"""`recipes/merge_adapter.py`: the merged checkpoint is the adapted model."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model
from repository import RECIPES
from transformers import AutoTokenizer

from hf_evidenceflow import load_thinking_model


GATES = ["thinking_residual_gate_r", "thinking_residual_gate_i", "thinking_residual_Lambda", "thinking_projection"]
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def merge():
    path = RECIPES / "merge_adapter.py"
    spec = importlib.util.spec_from_file_location("merge_adapter_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def adapter(plain_checkpoint, tokenizer, tmp_path):
    """A thinking adapter that changes the model, with its model for reference."""
    torch.manual_seed(0)
    base = load_thinking_model(plain_checkpoint, thinking_mode="embedding")
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False, modules_to_save=GATES)
    model = get_peft_model(base, config)
    for saved in (model, base.config, tokenizer):
        saved.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


def test_the_merged_checkpoint_gives_the_adapters_logits_and_thinks_as_it_did(merge, adapter, tmp_path):
    folder, model = adapter
    merge(["--adapter", str(folder), "--output_dir", str(tmp_path / "merged")])
    merged = load_thinking_model(str(tmp_path / "merged")).eval()
    assert merged.config.thinking_mode == "embedding"
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_the_merged_checkpoint_has_the_tokenizer_and_the_dtype(merge, adapter, tmp_path):
    merge(["--adapter", str(adapter[0]), "--output_dir", str(tmp_path / "merged"), "--dtype", "bfloat16"])
    assert load_thinking_model(str(tmp_path / "merged")).get_input_embeddings().weight.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "</s>"


def test_a_folder_without_an_adapter_is_an_error(merge, plain_checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        merge(["--adapter", plain_checkpoint, "--output_dir", str(tmp_path / "merged")])
