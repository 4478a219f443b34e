"""Loading by what a checkpoint is: of text and images, refused types, what was checked before."""

import json

import pytest
import torch
from decoder_families import plain_config
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GPT2Config,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from transformers.utils import logging

from hf_evidenceflow import export_base_model, load_thinking_model
from hf_evidenceflow.models import family_check
from hf_evidenceflow.trainers.hrpo_setup import thinking_config


IDS = torch.tensor([[9, 17, 5, 31, 44], [23, 7, 12, 8, 51]])
# More layers than the text model has
VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 2, "head_dim": 8}
WITH_IMAGES = {
    "gemma3": (Gemma3Config, Gemma3ForConditionalGeneration, {**VISION, "image_size": 28, "patch_size": 14}),
    "gemma4": (Gemma4Config, Gemma4ForConditionalGeneration, {**VISION, "num_key_value_heads": 2}),
    "qwen3_5": (
        Qwen3_5Config,
        Qwen3_5ForConditionalGeneration,
        {"depth": 5, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 32},
    ),
}


@pytest.fixture(params=WITH_IMAGES)
def with_images(request, tmp_path):
    config_class, model_class, vision = WITH_IMAGES[request.param]
    text = plain_config(f"{request.param}_text")
    torch.manual_seed(0)
    model = model_class(config_class(text_config=text.to_dict(), vision_config=vision)).eval()
    model.save_pretrained(tmp_path / "images")
    return model, str(tmp_path / "images")


@pytest.mark.slow
@torch.no_grad()
def test_the_text_model_of_a_checkpoint_with_images_is_loaded_and_saved(with_images, tmp_path):
    whole, folder = with_images
    model = load_thinking_model(folder, thinking_mode="none").eval()
    expected = whole(input_ids=IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert not any("visi" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(IDS).logits, expected, rtol=0, atol=1e-5)
    export_base_model(model, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    torch.testing.assert_close(base(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_message_names_the_text_model(with_images, caplog):
    logging.enable_propagation()
    try:
        load_thinking_model(with_images[1], thinking_mode="none")
    finally:
        logging.disable_propagation()
    assert f"Its text model is loaded, of type `thinking_{with_images[0].config.model_type}_text`" in caplog.text


@pytest.mark.slow
def test_the_trainers_see_the_config_of_the_text_model(with_images):
    config = thinking_config(with_images[1], {"thinking_mode": "soft"})
    assert config.model_type.endswith("_text") and config.thinking_mode == "soft"
    assert config.hidden_size == with_images[0].config.text_config.hidden_size


def test_what_has_passed_is_checked_once(plain_checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(family_check, "HF_HOME", str(tmp_path))
    checked = []
    monkeypatch.setattr(family_check, "failing_check", lambda config: checked.append(config.model_type))
    load_thinking_model(plain_checkpoint)
    load_thinking_model(plain_checkpoint)
    assert checked == ["qwen2"]
    remembered = json.loads((tmp_path / "hf_evidenceflow" / "checked_families.json").read_text())
    monkeypatch.setattr(family_check, "__version__", "0.0.0")
    load_thinking_model(plain_checkpoint)
    assert checked == ["qwen2", "qwen2"] and len(remembered) == 1


def test_what_has_failed_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(family_check, "HF_HOME", str(tmp_path / "home"))
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(family_check.FamilyError, match="`replay`") as raised:
        load_thinking_model(str(tmp_path))
    assert raised.value.check == "replay" and not (tmp_path / "home").exists()


def test_a_thinking_checkpoint_with_code_of_an_earlier_version_is_loaded(plain_checkpoint, tmp_path):
    model = load_thinking_model(plain_checkpoint)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "ForCausalLM"}
    config["auto_map"] = {auto: f"modeling_thinking_qwen2.ThinkingQwen2{name}" for auto, name in names.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for trust in (False, True):
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)) is type(model)
