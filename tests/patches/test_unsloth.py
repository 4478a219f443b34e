"""The patch of Unsloth: against stand-ins that follow its source, and against the real one where it is installed."""

import ast
import functools
import importlib.util
import json
import os
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from repository import HELPERS
from tiny_models import TINY
from transformers import Qwen2Config, Qwen2ForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES as ALL_MODULES
from hf_evidenceflow.patches import patch_unsloth, unsloth as unsloth_patch
from hf_evidenceflow.trainers import hrpo_trainer


CLASSES = ["FastLanguageModel", "FastModel"]
THINKING_MODULES = ALL_MODULES[:4]  # of a model without a learned schedule
FP32 = {module: {torch.float32} for module in THINKING_MODULES}


# Stand-ins: what unsloth 2026.10.9 does with the arguments and with the trainable parameters


class FastBaseModel:
    """unsloth.models.vision: any `modules_to_save`, but only modules with a `weight` are made trainable again."""

    @staticmethod
    def get_peft_model(model, r=16, target_modules=None, lora_alpha=16, modules_to_save=None, **kwargs):
        if model.full_finetuning:
            return model
        allowed = {name: kwargs[name] for name in ("exclude_modules", "lora_dropout") if name in kwargs}
        targets = target_modules or ["q_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=r, target_modules=targets, modules_to_save=modules_to_save, **allowed)
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                for saved in module.modules_to_save.modules():
                    if hasattr(saved, "weight"):
                        saved.requires_grad_(True)
        return model


class FastLlamaModel:
    """unsloth.models.llama: refuses all but embeddings and head."""

    @staticmethod
    def get_peft_model(model, r=16, target_modules=("q_proj",), lora_alpha=16, modules_to_save=None, **kwargs):
        for module in modules_to_save or ():
            if module not in ("lm_head", "embed_tokens"):
                raise TypeError(f"Unsloth: Module = {module} is not allowed.")
        return FastBaseModel.get_peft_model(model, r, list(target_modules), lora_alpha, modules_to_save, **kwargs)


@pytest.fixture
def unsloth(monkeypatch):
    """A module `unsloth`; FastModel inherits `get_peft_model`, FastLanguageModel has its own, as in the real one."""

    class FastLanguageModel(FastLlamaModel):
        @staticmethod
        @functools.wraps(FastLlamaModel.get_peft_model)
        def get_peft_model(model, *args, **kwargs):
            return FastLlamaModel.get_peft_model(model, *args, **kwargs)

    class FastModel(FastBaseModel):
        pass

    module = types.SimpleNamespace(FastLanguageModel=FastLanguageModel, FastModel=FastModel)
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr(unsloth_patch, "version", lambda package: unsloth_patch.CHECKED_VERSIONS[package][0])
    return module


@pytest.fixture
def make_model(plain_checkpoint):
    def make(**kwargs):
        model = load_thinking_model(plain_checkpoint, **kwargs)
        model.full_finetuning = False
        return model

    return make


def trained(model):
    """Thinking module -> dtypes of its trainable parameters."""
    found = {}
    for name, parameter in model.named_parameters():
        module = next((module for module in THINKING_MODULES if module in name), None)
        if module is not None and parameter.requires_grad:
            found.setdefault(module, set()).add(parameter.dtype)
    return found


def state(unsloth):
    return [dict(vars(getattr(unsloth, name))) for name in CLASSES]


# Effect


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_all_thinking_modules_train_in_fp32(unsloth, make_model, name, dtype):
    with patch_unsloth():
        model = getattr(unsloth, name).get_peft_model(make_model(dtype=dtype), r=3)
    assert trained(model) == FP32


def test_without_the_patch_one_class_refuses_and_the_other_leaves_lambda_frozen(unsloth, make_model):
    with pytest.raises(TypeError, match="thinking_residual_gate_r is not allowed"):
        unsloth.FastLanguageModel.get_peft_model(make_model(), modules_to_save=list(THINKING_MODULES))
    model = unsloth.FastModel.get_peft_model(make_model(), modules_to_save=list(THINKING_MODULES))
    assert "thinking_residual_Lambda" not in trained(model)


def test_thinking_modules_of_half_precision_become_fp32(unsloth, make_model):
    original = unsloth.FastModel.get_peft_model

    def downcast(*args, **kwargs):
        model = original(*args, **kwargs)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        return model

    unsloth.FastModel.get_peft_model = staticmethod(downcast)
    with patch_unsloth():
        model = unsloth.FastLanguageModel.get_peft_model(make_model(dtype=torch.bfloat16))
    assert trained(model) == FP32


def test_a_mode_trains_what_it_uses(unsloth, make_model):
    with patch_unsloth():
        model = unsloth.FastLanguageModel.get_peft_model(make_model(thinking_mode="embedding"))
    assert set(trained(model)) == set(THINKING_MODULES[:3])


@pytest.mark.parametrize("mode", ["none", "soft"])
def test_a_mode_without_modules_gets_the_original_call(unsloth, make_model, mode):
    with patch_unsloth():
        model = unsloth.FastLanguageModel.get_peft_model(make_model(thinking_mode=mode))
    assert trained(model) == {} and model.peft_config["default"].modules_to_save is None


def test_a_plain_model_gets_the_original_call(unsloth):
    model = Qwen2ForCausalLM(Qwen2Config(**TINY))
    model.full_finetuning = False
    with patch_unsloth(), pytest.raises(TypeError, match="norm is not allowed"):
        unsloth.FastLanguageModel.get_peft_model(model, modules_to_save=["norm"])


def test_arguments_of_the_user_are_kept(unsloth, make_model):
    with patch_unsloth():
        model = unsloth.FastLanguageModel.get_peft_model(
            make_model(), 5, ["k_proj"], modules_to_save=["lm_head"], exclude_modules=["layers.0.self_attn.k_proj"]
        )
    config = model.peft_config["default"]
    assert (config.r, config.target_modules) == (5, {"k_proj"})
    assert list(config.modules_to_save) == ["lm_head", *THINKING_MODULES]
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert {name.split("layers.")[1] for name in adapted} == {"1.self_attn.k_proj", "2.self_attn.k_proj"}


def test_all_linear_gives_no_adapter_to_thinking_modules(unsloth, make_model):
    with patch_unsloth():
        model = unsloth.FastModel.get_peft_model(make_model(thinking_mode="embedding"), target_modules="all-linear")
    assert not [name for name, _ in model.named_parameters() if "thinking" in name and "lora" in name]


def test_the_mode_of_the_model_stays(unsloth, make_model):
    with patch_unsloth():
        model = unsloth.FastModel.get_peft_model(make_model().train())
    assert model.training


# Never without thinking


@pytest.mark.parametrize("part", ["a decoding step", "a forward pass"])
def test_a_forward_around_the_thinking_modules_is_refused(unsloth, make_model, part):
    model = make_model()
    inner = model.model.forward

    def around(*args, thinking_states=None, thinking_mask=None, **kwargs):
        if part == "a decoding step" and kwargs.get(CACHE) is None:
            kwargs.update(thinking_states=thinking_states, thinking_mask=thinking_mask)
        return inner(*args, **kwargs)

    model.model.forward = around
    with patch_unsloth(), pytest.raises(RuntimeError, match=f"do not reach the thinking modules in {part}"):
        unsloth.FastLanguageModel.get_peft_model(model)


def test_the_fast_path_is_refused(unsloth, make_model):
    model = make_model()
    model.model.layers[1]._unsloth_fast_path = True
    with patch_unsloth(), pytest.raises(RuntimeError, match="fast path, whose decoding step goes around"):
        unsloth.FastLanguageModel.get_peft_model(model)


def test_full_fine_tuning_is_refused(unsloth, make_model):
    model = make_model()
    model.full_finetuning = True
    with patch_unsloth(), pytest.raises(RuntimeError, match="no trained copy of .*full fine-tuning"):
        unsloth.FastLanguageModel.get_peft_model(model)


def test_an_adapter_without_the_thinking_modules_is_refused(unsloth, make_model):
    model = get_peft_model(make_model(), LoraConfig(r=3, target_modules=["q_proj"]))
    unsloth.FastModel.get_peft_model = staticmethod(lambda model, **kwargs: model)  # "Already have LoRA adapters!"
    with patch_unsloth(), pytest.raises(RuntimeError, match="no trained copy of .*'thinking_projection'"):
        unsloth.FastModel.get_peft_model(model)


def test_a_rollout_around_the_models_own_decoding_stops_hrpo(unsloth, make_model, tokenizer, tmp_path):
    with patch_unsloth():
        model = unsloth.FastLanguageModel.get_peft_model(make_model())
    base = model.get_base_model()
    base.generate = lambda input_ids, **kwargs: torch.cat([input_ids, input_ids[:, -1:]], dim=1)
    args = HRPOConfig(str(tmp_path), use_cpu=True, bf16=False, max_steps=1, report_to="none", beta=0.0)
    args.max_completion_length = 3
    data = Dataset.from_dict({"prompt": ["7+2="] * 8})
    trainer = HRPOTrainer(
        model, lambda completions, **kwargs: [0.0] * len(completions), args, data, processing_class=tokenizer
    )
    with pytest.raises(RuntimeError, match="The rollout recorded no thinking states"):
        trainer.train()


def test_a_trainer_over_unsloths_own_is_refused(unsloth, monkeypatch):
    class UnslothGRPOTrainer:
        pass

    class Mixin:
        pass

    class Replaced(Mixin, UnslothGRPOTrainer):
        pass

    before = state(unsloth)
    monkeypatch.setattr(hrpo_trainer, "HRPOTrainer", Replaced)
    with pytest.raises(RuntimeError, match="HRPOTrainer is built on UnslothGRPOTrainer"):
        patch_unsloth()
    assert state(unsloth) == before


# Undo


def test_after_undo_the_classes_are_as_before(unsloth):
    before = state(unsloth)
    handle = patch_unsloth()
    assert state(unsloth) != before
    handle.undo()
    handle.undo()
    assert state(unsloth) == before


def test_with_undoes_after_an_exception(unsloth):
    before = state(unsloth)
    with pytest.raises(KeyError), patch_unsloth():
        raise KeyError
    assert state(unsloth) == before


@pytest.mark.parametrize("first", [0, 1], ids=["in-order", "in-reverse"])
def test_two_patches_can_be_undone_in_any_order(unsloth, make_model, first):
    before = state(unsloth)
    handles = [patch_unsloth(), patch_unsloth()]
    handles[first].undo()
    model = unsloth.FastLanguageModel.get_peft_model(make_model())
    assert len(trained(model)) == len(THINKING_MODULES)
    assert list(model.peft_config["default"].modules_to_save) == list(THINKING_MODULES)
    handles[1 - first].undo()
    assert state(unsloth) == before


def test_one_class_under_two_names_is_patched_once(unsloth, make_model):
    unsloth.FastLanguageModel = unsloth.FastModel  # Unsloth's CPU backend
    before = state(unsloth)
    with patch_unsloth():
        assert len(trained(unsloth.FastLanguageModel.get_peft_model(make_model()))) == len(THINKING_MODULES)
    assert state(unsloth) == before


def test_undo_below_the_patch_of_another_tool_passes_through(unsloth, make_model):
    handle = patch_unsloth()
    inner = unsloth.FastLanguageModel.get_peft_model
    outer = staticmethod(lambda *args, **kwargs: inner(*args, **kwargs))
    unsloth.FastLanguageModel.get_peft_model = outer
    handle.undo()
    assert vars(unsloth.FastLanguageModel)["get_peft_model"] is outer
    assert trained(unsloth.FastLanguageModel.get_peft_model(make_model())) == {}


# Window of versions


def test_another_version_is_refused_with_the_one_that_was_checked(unsloth, monkeypatch):
    before = state(unsloth)
    monkeypatch.setattr(unsloth_patch, "version", lambda package: "2026.11.1")
    with pytest.raises(ImportError, match=r"checked against unsloth 2026\.10\.9 and 2026\.11\.1 is installed"):
        patch_unsloth()
    assert state(unsloth) == before


def test_a_missing_package_is_named(unsloth, monkeypatch):
    def version(package):
        if package == "unsloth_zoo":
            raise PackageNotFoundError(package)
        return "2026.10.9"

    monkeypatch.setattr(unsloth_patch, "version", version)
    with pytest.raises(ImportError, match="needs unsloth_zoo, which is not installed"):
        patch_unsloth()


# The real source


def source(package, path):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0], path).read_text(encoding="utf-8")


def function(tree, *names):
    for name in names:
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
    return tree


@pytest.mark.parametrize(
    "package, path, name",
    [
        ("unsloth", "models/llama.py", "FastLlamaModel"),
        ("unsloth", "models/vision.py", "FastBaseModel"),
        ("unsloth_zoo", "cpu/loader.py", "FastCPUModel"),
    ],
)
def test_upstream_get_peft_model_takes_the_arguments_that_are_passed(package, path, name):
    arguments = function(ast.parse(source(package, path)), name, "get_peft_model").args
    names = [argument.arg for argument in arguments.args]
    assert names[:5] == ["model", "r", "target_modules", "lora_alpha", "lora_dropout"]
    assert "modules_to_save" in names and arguments.kwarg.arg == "kwargs"


def test_upstream_marks_the_fast_path_whose_decoding_goes_around_the_model():
    tree = ast.parse(source("unsloth", "models/llama.py"))
    assert "module._unsloth_fast_path = True" in ast.unparse(function(tree, "mark_unsloth_fast_path"))
    forward = ast.unparse(function(tree, "CausalLM_fast_forward"))
    assert "outputs = fast_forward_inference(self, input_ids, past_key_values" in forward


def test_upstream_sends_unknown_model_types_to_the_general_path():
    loader = ast.unparse(function(ast.parse(source("unsloth", "models/loader.py")), "FastLanguageModel"))
    assert "FastModel.from_pretrained(" in loader and "thinking" not in loader


def test_upstream_frees_only_modules_with_a_weight():
    tree = ast.parse(source("unsloth_zoo", "training_utils.py"))
    assert "if hasattr(saved_module, 'weight'):" in ast.unparse(function(tree, "prepare_model_for_training"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu code on a cpu"])
def test_hrpo_trains_the_thinking_modules_of_a_model_of_the_real_unsloth(plain_checkpoint, tmp_path, backend):
    source("unsloth", "__init__.py")
    if backend != "cpu" and importlib.util.find_spec("triton") is None:
        pytest.skip("Unsloth's GPU code needs triton, which is not installed")
    folder = str(tmp_path / "thinking")
    load_thinking_model(plain_checkpoint).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path(folder, name).write_bytes(Path(plain_checkpoint, name).read_bytes())
    switch = {"UNSLOTH_FORCE_CPU": "1"} if backend == "cpu" else {"UNSLOTH_ALLOW_CPU": "1"}
    worker = str(HELPERS / "unsloth_worker.py")
    run = subprocess.run(
        [sys.executable, worker, folder, backend, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **switch, "UNSLOTH_DISABLE_STATISTICS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["restored"]
    assert len(result["trained"]) == 6 and all(result["trained"].values())
    assert all(result["moved"].values()) and result["dtypes"] == ["torch.float32"]
    assert len(result["parity"]) == 2 and max(result["parity"]) <= 2e-2 and min(result["thinking"]) > 0
