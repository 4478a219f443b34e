"""The recipe of latent training end to end, at the smallest size, and what it says to bad input."""

import importlib.util
import json

import pytest
import torch
from repository import RECIPES
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import LatentSFTTrainer, load_thinking_model
from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.report.run_record import read_run_record


CONFIGS = RECIPES / "configs/latent_sft"


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("latent_sft")


@pytest.fixture
def arguments(tmp_path):
    return [
        *("--config", str(CONFIGS / "smoke.yaml"), "--output_dir", str(tmp_path / "run")),
        *("--train_problems", "40", "--test_problems", "5", "--per_device_train_batch_size", "8"),
        *("--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--disable_tqdm", "true"),
    ]


@pytest.fixture
def llama(tmp_path, tokenizer):
    """Folder of a plain Llama with random weights, and rows in the format of GSM8k-Aug beside it."""
    path = tmp_path / "llama"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    row = {"question": "How much is 2+3-1?", "cot": "<<2+3=5>> <<5-1=4>>", "answer": "#### 4"}
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(8)))
    return path


@pytest.mark.slow
def test_a_task_trains_a_model_made_for_it_and_reports(recipe, arguments, tmp_path, capsys):
    recipe.main(arguments)
    run = tmp_path / "run"
    assert read_run_record(run)["status"] == "finished"
    assert (run / "curves.png").stat().st_size > 10_000
    assert load_thinking_model(str(run)).config.thinking_mode == "soft"
    assert len(read_jsonl(run / "test.jsonl")) == 5 and len(read_jsonl(run / "problems.jsonl")) == 40
    assert {"latent/kl", "latent/target_share"} <= set(read_jsonl(run / "log.jsonl")[0])
    assert "Greedy completions, step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(recipe, arguments, tmp_path, monkeypatch):
    through = recipe.main([*arguments, "--output_dir", str(tmp_path / "through"), "--plot", "false"])
    original = LatentSFTTrainer.training_step

    def interrupt(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LatentSFTTrainer, "training_step", interrupt)
        recipe.main([*arguments, "--plot", "false"])
    resumed = recipe.main([*arguments, "--plot", "false", "--resume_from_checkpoint", "true"])
    for (name, weight), other in zip(through.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(weight, other), name


@pytest.mark.slow
@pytest.mark.parametrize(("config", "count"), [("coconut/paper", 6), ("codi/paper", 6)])
def test_a_published_config_trains_a_llama(recipe, llama, tmp_path, config, count, caplog):
    run = tmp_path / "run"
    recipe.main(
        [
            *("--config", str(CONFIGS / f"{config}.yaml"), "--output_dir", str(run)),
            *("--model_name_or_path", str(llama), "--dataset_name_or_path", str(llama / "train.jsonl")),
            *("--placeholder_token", "?", "--use_cpu", "true", "--bf16", "false", "--dtype", "float32"),
            *("--max_steps", "3", "--logging_steps", "1", "--per_device_train_batch_size", "2"),
            *("--gradient_accumulation_steps", "1", "--disable_tqdm", "true"),
            *(("--latent_steps_per_stage", "1", "--latent_curriculum", "0", "2", "99") if "coconut" in config else ()),
        ]
    )
    assert "model_init_kwargs" not in caplog.text  # what TRL says of those that have been used
    loaded = load_thinking_model(str(run))
    assert loaded.config.thinking_count == count and loaded.config.thinking_mode == config.split("/")[0]
    rows = read_jsonl(run / "log.jsonl")
    assert [row["loss"] > 0 for row in rows if "loss" in row] == [True] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "exactly one of `dataset_name_or_path`"),
        (["--task", "sets", "--dataset_name_or_path", "x"], "exactly one of `dataset_name_or_path`"),
        (["--dataset_name_or_path", "x"], "needs `model_name_or_path`"),
        (["--task", "sets", "--task_settings", "[1]"], "`task_settings`"),
        (["--task", "sets", "--objective", "soft"], "`objective` must be one of"),
        (["--task", "cups"], "cups"),
    ],
)
def test_options_that_do_not_go_together_are_answered(recipe, tmp_path, options, message, capsys):
    with pytest.raises(ValueError, match=message.replace("`", ".")):
        recipe.main(["--output_dir", str(tmp_path), *options])
