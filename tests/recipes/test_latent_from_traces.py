"""Latent training from a model's own traces: its settings, and the four parts in miniature."""

import json

import pytest
import yaml
from repository import RECIPES

from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes import latent_from_traces
from hf_evidenceflow.recipes.latent_from_traces import TracesArguments
from hf_evidenceflow.tasks import build_set_tokenizer


SMOKE = RECIPES / "configs" / "latent_from_traces" / "smoke.yaml"


@pytest.mark.parametrize(
    ("setting", "value", "shown"),
    [
        ("task", "stories", "'sets'"),
        ("arms", ["latnt"], "latnt"),
        ("arms", ["latent_soft", "mixed"], "mixed"),
        ("samples", 0, "at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(setting, value, shown):
    with pytest.raises(ValueError, match=f"`{setting}`.*{shown}"):
        TracesArguments(**{setting: value})


@pytest.fixture
def checkpoint(tmp_path):
    settings = yaml.safe_load(SMOKE.read_text())["task_settings"]
    tokenizer = build_set_tokenizer(settings["cups"], settings["operations"], words=True)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.5,  # frozen and tied, smaller embeddings could not say anything for certain
    }
    folder = tmp_path / "model"
    model_from_scratch("llama", sizes, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_finished_parts_stay_and_another_split_uses_their_weights(checkpoint, tmp_path):
    out = tmp_path / "out"
    command = ["--config", str(SMOKE), "--model_name_or_path", str(checkpoint), "--output_dir", str(out)]
    report = latent_from_traces.main([*command, "--evaluate_on", "validation"])
    assert set(report["arms"]) == {"latent_soft", "start", "discrete", "pause_soft"}
    assert set(report["arms"]["latent_soft"]) == {"accuracy", "forced", "off", "shuffle", "zero"}
    assert json.loads((out / "report.json").read_text())["split"] == "validation"

    kept = [*out.glob("*/adapter_model.safetensors"), *out.glob("*/validation_samples.jsonl"), out / "traces.jsonl"]
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert len(times) == 9
    assert latent_from_traces.main([*command, "--evaluate_on", "test"])["split"] == "test"
    assert {path: path.stat().st_mtime_ns for path in kept} == times
