"""Numbers that nothing can be computed with are refused, in configs and in checkpoints of all our model types."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hf_evidenceflow
from hf_evidenceflow import (
    AblationLlamaConfig,
    CrossLayerLlamaConfig,
    LoopedLlamaConfig,
    ThinkingLlamaConfig,
    ThinkingQwen2Config,
    TinySeekConfig,
    load_thinking_model,
)


MODELS = Path(hf_evidenceflow.__file__).parent / "models"
CONFIGS = [ThinkingLlamaConfig, ThinkingQwen2Config, TinySeekConfig, CrossLayerLlamaConfig, AblationLlamaConfig]
CONFIGS += [LoopedLlamaConfig]
NAN, INF = float("nan"), float("inf")


def test_all_model_folders_have_the_same_checks():
    assert len({(MODELS / name / "number_checks.py").read_text() for name in ("thinking", "tinyseek")}) == 1
    assert len({path.read_text() for path in MODELS.glob("*/number_checks.py")}) == 1
    assert len(list(MODELS.glob("*/number_checks.py"))) == 5


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": INF}),
        ("num_hidden_layers", -1),
        ("hidden_size", 0),
        ("vocab_size", 0),
        ("max_position_embeddings", -5),
        ("eos_token_id", 10**6),
        ("eos_token_id", [1, 10**6]),
    ],
)
def test_a_config_with_a_useless_number_is_refused(config, field, value):
    with pytest.raises(ValueError, match=f"`{'rope_parameters.rope_theta' if 'rope' in field else field}"):
        config(**{field: value})


@pytest.mark.parametrize("config", [c for c in CONFIGS if c is not TinySeekConfig])
@pytest.mark.parametrize("value", [NAN, INF, 0.0, -1e-6])
def test_an_epsilon_must_be_a_positive_number(config, value):
    with pytest.raises(ValueError, match="`rms_norm_eps`"):
        config(rms_norm_eps=value)


@pytest.mark.parametrize("name", ["thinking_residual_c", "thinking_residual_r_min", "thinking_projection_init_std"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_thinking_fields_must_be_finite(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ThinkingQwen2Config(**{name: value})


def test_a_field_that_is_given_at_loading_is_checked(plain_checkpoint):
    with pytest.raises(ValueError, match="`rms_norm_eps`"):
        load_thinking_model(plain_checkpoint, rms_norm_eps=NAN)


@pytest.fixture
def thinking_checkpoint(plain_checkpoint, tmp_path):
    load_thinking_model(plain_checkpoint).save_pretrained(tmp_path / "thinking")
    return tmp_path / "thinking"


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("load", [load_thinking_model, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("part", ["Lambda", "embed_tokens", "thinking_projection"])
def test_a_weight_that_is_not_finite_is_refused_with_its_name(thinking_checkpoint, load, value, part):
    def change(weights):
        (name,) = [name for name in weights if part in name]
        weights[name].view(-1)[-1] = value

    change_weights(thinking_checkpoint, change)
    with pytest.raises(ValueError, match=rf"`.*{part}.*` of .*thinking` holds 1 of"):
        load(str(thinking_checkpoint))


@pytest.mark.parametrize("load", [load_thinking_model, AutoModelForCausalLM.from_pretrained])
def test_a_lost_thinking_weight_is_not_made_anew(thinking_checkpoint, load):
    def change(weights):
        del weights[next(name for name in weights if "Lambda" in name)]

    change_weights(thinking_checkpoint, change)
    with pytest.raises(ValueError, match="lacks the weight `.*Lambda"):
        load(str(thinking_checkpoint))


def test_a_thinking_checkpoint_without_any_thinking_weight_is_refused(thinking_checkpoint):
    def change(weights):
        for name in [name for name in weights if "thinking" in name]:
            del weights[name]

    change_weights(thinking_checkpoint, change)
    with pytest.raises(ValueError, match="lacks the weight `.*` and . more"):
        load_thinking_model(str(thinking_checkpoint))


def test_bf16_and_whole_checkpoints_load(thinking_checkpoint):
    assert load_thinking_model(str(thinking_checkpoint), dtype="bfloat16").dtype == torch.bfloat16
    config = json.loads((thinking_checkpoint / "config.json").read_text())
    assert config["model_type"].startswith("thinking_")
