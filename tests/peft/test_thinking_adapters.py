"""Every stock way to load a thinking model or its adapter: it thinks, or one error names the remedy."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from hf_evidenceflow import hub_code, load_thinking_model
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES


SETTINGS = {
    "thinking_mode": "embedding",
    "thinking_residual_r_min": 0.3,
    "thinking_residual_r_max": 0.4,
    "thinking_projection_norm": "layernorm",
}
REMEDY = "hf_evidenceflow.load_thinking_model (pip install hf-evidenceflow)"
INPUTS = {
    "input_ids": torch.arange(3, 17).view(2, 7),
    "thinking_states": torch.ones(2, 5, 24),
    "thinking_mask": torch.ones(2, 5, dtype=torch.bool),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


@pytest.fixture(scope="module")
def trained(plain_checkpoint):
    """A PEFT model around a thinking one, with weights of which none is at its initial value."""
    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=list(THINKING_MODULES[:3]))
    model = get_peft_model(load_thinking_model(plain_checkpoint, **SETTINGS), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def hub_repository(cache, name, folder):
    """A repository in the cache of the Hub, as a download leaves it."""
    home = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)


@pytest.fixture(scope="module")
def places(trained, plain_checkpoint, tokenizer, tmp_path_factory):
    """What can be loaded, by name: the folder of PEFT, that of our trainer, and the same on the Hub."""
    root = tmp_path_factory.mktemp("places")
    trained.save_pretrained(root / "peft")
    shutil.copytree(root / "peft", root / "trainer")
    trained.get_base_model().config.save_pretrained(root / "trainer")
    tokenizer.save_pretrained(root / "trainer")
    hub_repository(root / "hub", "me/adapter", root / "trainer")
    hub_repository(root / "hub", "me/base", plain_checkpoint)
    config = root / "hub" / "models--me--adapter" / "snapshots" / ("0" * 40) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "me/base"}))
    return {"peft": str(root / "peft"), "trainer": str(root / "trainer"), "hub": "me/adapter", "cache": root / "hub"}


LOADERS = {
    "auto": lambda path, base: AutoModelForCausalLM.from_pretrained(path),
    "auto_peft": lambda path, base: AutoPeftModelForCausalLM.from_pretrained(path),
    "peft_on_base": lambda path, base: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path),
    "pipeline": lambda path, base: pipeline("text-generation", model=path, device="cpu").model,
    "ours": lambda path, base: load_thinking_model(path),
    "recipes": lambda path, base: load_model(path, device="cpu")[0],
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("place", ["peft", "trainer", "hub"])
def test_an_adapter_is_loaded_with_its_thinking(loader, place, places, trained, plain_checkpoint, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(places["cache"]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = LOADERS[loader](places[place], plain_checkpoint)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)
    assert model.config.thinking_mode == "embedding" and model.config.thinking_residual_r_min == 0.3
    assert model.config.model_type == "thinking_qwen2"
    assert model.config.architectures == ["ThinkingQwen2ForCausalLM"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loader", [AutoModelForCausalLM, AutoPeftModelForCausalLM])
def test_thinking_modules_of_an_adapter_are_loaded_in_full_precision(loader, dtype, places):
    model = loader.from_pretrained(places["peft"], dtype=dtype)
    dtypes = {parameter.dtype for name, parameter in model.named_parameters() if "thinking" in name}
    assert dtypes == {torch.float32}


def test_settings_given_while_loading_count_more_than_the_adapters(places):
    assert load_thinking_model(places["peft"], thinking_mode="none").config.thinking_mode == "none"
    assert load_model(places["trainer"], device="cpu", thinking_mode="none")[0].config.thinking_mode == "none"


def test_an_adapter_is_saved_with_the_mode_of_that_moment(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(trained.config, "thinking_mode", "none")
    trained.save_pretrained(tmp_path)
    assert load_thinking_model(str(tmp_path)).config.thinking_mode == "none"


def test_a_loaded_adapter_saves_what_it_was_loaded_from(places, tmp_path):
    loaded = load_thinking_model(places["peft"])
    loaded.save_pretrained(tmp_path)
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(loaded), rtol=0, atol=2e-5)


def test_what_is_pushed_is_what_is_saved(trained, places, monkeypatch):
    uploaded = {}

    def upload(self, operations, **kwargs):
        uploaded.update({item.path_in_repo: Path(item.path_or_fileobj).read_bytes() for item in operations})

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", upload)
    trained.push_to_hub("me/pushed")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert uploaded[name] == (Path(places["peft"]) / name).read_bytes(), name


def test_an_adapter_that_does_not_say_how_it_thinks_is_refused(places, tmp_path):
    folder = shutil.copytree(places["peft"], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["thinking_config"]
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"says how the model thinks.*thinking_mode='projection'"):
        load_thinking_model(str(folder))
    assert load_thinking_model(str(folder), **SETTINGS).config.thinking_projection_norm == "layernorm"


def test_a_model_that_cannot_think_does_not_take_the_adapter(places, plain_checkpoint):
    model = AutoModelForSequenceClassification.from_pretrained(plain_checkpoint)
    with pytest.raises(ValueError, match=r"Qwen2ForSequenceClassification cannot become.*load_thinking_model"):
        PeftModel.from_pretrained(model, places["peft"])


def test_a_thinking_model_of_another_kind_does_not_take_the_adapter(places, plain_checkpoint):
    model = load_thinking_model(plain_checkpoint, thinking_projection_layers=2)
    with pytest.raises(ValueError, match=r"`thinking_projection_layers=1`, but the model has 2"):
        PeftModel.from_pretrained(model, places["peft"])


def test_a_plain_base_that_became_thinking_is_saved_as_a_thinking_model(places, plain_checkpoint, tmp_path):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(plain_checkpoint), places["peft"])
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert merged.config.thinking_projection_norm == "layernorm"
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)


def test_a_plain_adapter_stays_plain(plain_checkpoint, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(plain_checkpoint), lora).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).peft_type == "LORA"
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path).config.model_type == "qwen2"


def test_a_prompt_adapter_on_a_thinking_model_can_be_made(plain_checkpoint):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = get_peft_model(load_thinking_model(plain_checkpoint), config)
    assert model(torch.arange(3, 10)[None]).logits.shape[1] == 10


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_lora_without_targets_is_identity_and_survives_saving(targets, plain_checkpoint, tmp_path):
    base = load_thinking_model(plain_checkpoint, **SETTINGS)
    base.save_pretrained(tmp_path / "base")
    before = logits(base)
    lora = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(load_thinking_model(str(tmp_path / "base")), lora)
    assert torch.equal(logits(model), before)
    adapted = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert adapted and not any(module in name for name in adapted for module in THINKING_MODULES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path / "adapter")
    expected = logits(model)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def elsewhere(places, plain_checkpoint, tokenizer, tmp_path_factory):
    """What each loader says, in a process where the package cannot be imported; by trust, place and loader."""
    root = tmp_path_factory.mktemp("elsewhere")
    model = load_thinking_model(plain_checkpoint)
    model.save_pretrained(root / "full")
    with hub_code(model):
        model.save_pretrained(root / "code")
    for name in ("full", "code"):
        tokenizer.save_pretrained(root / name)
    script = """
        import json, sys
        sys.modules["hf_evidenceflow"] = None
        from peft import AutoPeftModelForCausalLM, PeftModel
        from transformers import AutoModelForCausalLM, pipeline
        places, base = json.loads(sys.argv[1]), sys.argv[2]
        loaders = {
            "auto": lambda path, trust: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=trust),
            "pipeline": lambda path, trust: pipeline(
                "text-generation", model=path, device="cpu", trust_remote_code=trust).model,
            "auto_peft": lambda path, trust: AutoPeftModelForCausalLM.from_pretrained(path, trust_remote_code=trust),
            "peft_on_base": lambda path, trust: PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(base), path),
        }
        said = {}
        for trust in (False, True):
            for place, path in places.items():
                for name, load in loaders.items():
                    if place in ("full", "code") and "peft" in name:
                        continue
                    try:
                        thinks = any("thinking" in name for name, _ in load(path, trust).named_parameters())
                        said[f"{trust} {place} {name}"] = "thinks" if thinks else "plain"
                    except Exception as error:
                        said[f"{trust} {place} {name}"] = str(error)
        print("SAID", json.dumps(said))
    """
    folders = {"peft": places["peft"], "trainer": places["trainer"], "hub": "me/adapter"}
    folders |= {"full": str(root / "full"), "code": str(root / "code")}
    environment = {"HF_HOME": str(root), "HF_HUB_CACHE": str(places["cache"]), "HF_HUB_OFFLINE": "1", "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), json.dumps(folders), plain_checkpoint],
        cwd=root,
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.split("SAID ")[1])


@pytest.mark.slow
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("place", ["peft", "trainer", "hub", "full", "code"])
def test_where_the_package_is_not_it_thinks_or_names_the_remedy(trust, place, elsewhere):
    said = {key.split()[2]: text for key, text in elsewhere.items() if key.startswith(f"{trust} {place} ")}
    assert len(said) == (2 if place in ("full", "code") else 4)
    for loader, text in said.items():
        if place == "code":
            assert text == "thinks" if trust else "`trust_remote_code=True`" in text, loader
        else:
            assert REMEDY in text, f"{loader}: {text}"
