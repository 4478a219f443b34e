"""Model folders that are damaged, or do not belong together, are refused with their name, the place and a remedy."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_evidenceflow import load_thinking_model
from hf_evidenceflow.data import load_tokenizer
from hf_evidenceflow.models.weights import broken_weights, check_adapter, load_checked, naming_folder


@pytest.fixture
def folder(plain_checkpoint, tmp_path):
    import shutil

    return shutil.copytree(plain_checkpoint, tmp_path / "model")


def load(folder):
    return load_checked(AutoModelForCausalLM, str(folder))


def change_json(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change_weights(folder, change):
    path = next(folder.glob("*.safetensors"))
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refused(load, folder, words):
    with pytest.raises((ValueError, OSError)) as raised:
        load(folder)
    text = str(raised.value)
    assert str(folder) in text and words in text, text
    assert "orrect" in text or "again" in text, text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "config.json is no valid JSON"),
        ("config.json", "", "config.json is empty"),
        ("config.json", "[]", "must hold a JSON object"),
        ("config.json", '{"model_type": "nothing"}', "nothing"),
        ("config.json", "{}", "model_type"),
        ("generation_config.json", "{", "generation_config.json is no valid JSON"),
        ("model.safetensors", "abc", "model.safetensors cannot be opened"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, words):
    (folder / name).write_text(content)
    refused(load, folder, words)
    refused(load_thinking_model, folder, words)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "lacks weights"),
        ({"num_hidden_layers": 1, "layer_types": ["full_attention"]}, "`num_hidden_layers` is 1"),
        ({"intermediate_size": 99}, "mismatch"),
        ({"hidden_act": "nothing"}, "nothing"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder, entries, words):
    change_json(folder / "config.json", **entries)
    refused(load, folder, words)
    refused(load_thinking_model, folder, words)


def test_a_plain_model_with_nan_is_refused(folder):
    change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    refused(load, folder, "`model.norm.weight`")


def test_a_lost_weight_is_refused(folder):
    change_weights(folder, lambda weights: weights.pop("model.norm.weight"))
    refused(load, folder, "`model.norm.weight`")


@pytest.mark.parametrize("content", ["{", '{"weight_map": 3}', "{}", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_broken_index_is_named(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in broken_weights(folder)


def test_an_index_that_lists_a_weight_in_another_file_is_named(folder):
    listed = {"weight_map": {"nothing.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    assert broken_weights(folder).startswith("model.safetensors lacks the weight `nothing.weight`")


def test_a_broken_checkpoint_inside_does_not_break_the_model(folder):
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_text("abc")
    assert broken_weights(folder) is None


@pytest.mark.parametrize("content", ["{", "", "{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_named(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(load_tokenizer, folder, "tokenizer")


@pytest.fixture
def adapter(folder, tmp_path):
    model = get_peft_model(load(folder), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_whole_adapter_passes(adapter, folder):
    model = get_peft_model(load(folder), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    check_adapter(model, adapter)


@pytest.mark.parametrize("change", ["lost", "added", "nan"])
def test_an_adapter_that_is_not_whole_is_refused(adapter, folder, change):
    def damage(weights):
        name = next(iter(weights))
        if change == "lost":
            del weights[name]
        elif change == "added":
            weights["more"] = torch.ones(2)
        else:
            weights[name][0, 0] = float("nan")

    change_weights(adapter, damage)

    def load_adapter(folder):
        from peft import PeftModel

        check_adapter(PeftModel.from_pretrained(load(model_folder), str(folder)), folder)

    model_folder = folder
    refused(load_adapter, adapter, "weight")


def test_errors_of_ours_and_a_lack_of_memory_keep_their_words():
    with pytest.raises(MemoryError), naming_folder("x"):
        raise MemoryError
    with (
        pytest.raises(ValueError, match="`x` cannot be loaded .it is no local folder; KeyError: 'a'"),
        naming_folder("x"),
    ):
        {}["a"]


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/model", "runs/of/mine", "outputs/smoke-scratch"])
@pytest.mark.parametrize("load", [load, load_tokenizer, load_thinking_model])
def test_a_missing_folder_is_an_error_without_asking_the_hub(load, path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.http_get", pytest.fail)
    with pytest.raises(FileNotFoundError, match=f"There is no folder {Path(path)}. Check the path"):
        load(path)


@pytest.mark.parametrize("load", [load, load_tokenizer, load_thinking_model])
def test_a_hub_that_does_not_answer_is_asked_once(load, monkeypatch):
    asked = []

    def hang(self, name, timeout):
        asked.append((name, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hang)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", pytest.fail)
    with pytest.raises(
        OSError, match=r"`organization/model` is no local folder, and the Hub did not answer.*timed out"
    ):
        load("organization/model")
    assert asked == [("organization/model", 10)]
