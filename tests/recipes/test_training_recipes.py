"""The training recipes end to end, in this process and at the smallest size; and what they say to bad input."""

import importlib.util
import json
import os

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from quiet_training import STEP_BY_STEP
from repository import RECIPES
from transformers import AutoModelForCausalLM, pipeline

from hf_evidenceflow import HRPOTrainer, LatentSFTConfig, LatentSFTTrainer, load_thinking_model
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.report.run_record import read_run_record


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A checkpoint of `train_from_scratch.py`, its problems beside it."""
    output_dir = tmp_path_factory.mktemp("recipes") / "scratch"
    config = str(RECIPES / "configs/train_from_scratch/smoke.yaml")
    sizes = ["--max_steps", "3", "--generated_problems", "60", "--hidden_size", "32", "--intermediate_size", "48"]
    load_recipe("train_from_scratch").main(["--config", config, "--output_dir", str(output_dir), *sizes])
    return output_dir


@pytest.fixture
def arguments(scratch, tmp_path):
    return [
        *("--config", str(RECIPES / "configs/hrpo_gsm8k/smoke.yaml")),
        *("--model_name_or_path", str(scratch)),
        *("--dataset_name_or_path", str(scratch / "problems.jsonl")),
        *("--output_dir", str(tmp_path / "run")),
        *("--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "8"),
        *("--max_completion_length", "10", "--disable_tqdm", "true"),
    ]


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("hrpo_gsm8k")


@pytest.mark.slow
def test_the_recipe_trains_saves_and_reports(recipe, arguments, tmp_path, capsys):
    recipe.main(arguments)
    run = tmp_path / "run"
    assert read_run_record(run)["status"] == "finished"
    assert read_run_record(run)["configs"]["training"]["parity_check_steps"] == 5
    assert (run / "curves.png").stat().st_size > 10_000
    assert load_thinking_model(str(run)).config.thinking_mode == "projection"
    card = (run / "README.md").read_text()
    assert "## Reproduction" in card and "Seed: 42" in card and "gsm8k_reward" in card
    assert "Last rollout, step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_only_grpo_trains_without_thinking(recipe, arguments, tmp_path):
    trainer = recipe.main([*arguments, "--only_grpo", "true", "--plot", "false"])
    assert trainer.thinking_mode == "none"
    assert not any("thinking" in key for entry in trainer.state.log_history for key in entry)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["soft", "coconut"])
def test_a_latent_checkpoint_goes_on_with_its_own_thinking(recipe, arguments, scratch, tmp_path, mode):
    settings = {"thinking_mode": mode, "objective": "answer", "latent_curriculum": [2], "max_steps": 2}
    trainer = LatentSFTTrainer(
        model=str(scratch),
        args=LatentSFTConfig(str(tmp_path / "latent"), **settings, **STEP_BY_STEP, save_strategy="no"),
        train_dataset=[
            {"prompt": f"{n} + 3\n", "steps": [f"{n} + 3", "done"], "answer": str(n + 3)} for n in range(9)
        ],
    )
    trainer.train()
    trainer.save_model()
    weights = {name: value.clone() for name, value in trainer.model.named_parameters() if "thinking" in name}
    run = recipe.main(
        [*arguments, "--model_name_or_path", str(tmp_path / "latent"), "--plot", "false", "--parity_check_steps", "1"]
    )
    config = run.model.config
    assert (config.thinking_mode, config.thinking_count, config.token_policy) == (mode, 2, "placeholder")
    assert config.thinking_placeholder_id == trainer.model.config.thinking_placeholder_id
    frozen = dict(run.model.named_parameters())
    assert all(torch.equal(frozen[name], value) for name, value in weights.items())
    gaps = [row["thinking/parity_gap"] for row in run.state.log_history if "thinking/parity_gap" in row]
    assert len(gaps) == 4 and max(gaps) <= 1e-4


PUBLISHED = """--use_peft true --lora_r 32 --learning_rate 5e-6 --lr_thinking_residual_gate 1e-4
--lr_thinking_residual_Lambda 1e-3 --num_generations 4 --temperature 0.5"""


@pytest.mark.slow
def test_the_published_command_trains_an_adapter_that_thinks_wherever_it_is_loaded(
    recipe, arguments, tmp_path, capsys
):
    extra = ["--thinking_mode", "embedding", "--thinking_residual_r_min", "0.9", "--plot", "false"]
    trainer = recipe.main([*arguments, *PUBLISHED.split(), *extra])
    run = str(tmp_path / "run")
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert adapter["r"] == 32 and adapter["lora_alpha"] == 64
    ids = torch.arange(3, 17).view(2, 7)
    states = {"thinking_states": torch.ones(2, 5, 32), "thinking_mask": torch.ones(2, 5, dtype=torch.bool)}
    loaded = {
        "ours": load_thinking_model(run),
        "auto": AutoModelForCausalLM.from_pretrained(run),
        "auto_peft": AutoPeftModelForCausalLM.from_pretrained(run),
        "pipeline": pipeline("text-generation", model=run, device="cpu").model,
        "recipes": load_model(run, device="cpu")[0],
    }
    with torch.no_grad():
        expected = trainer.model.eval()(ids, **states).logits
        for name, model in loaded.items():
            assert model.config.thinking_mode == "embedding" and model.config.thinking_residual_r_min == 0.9, name
            torch.testing.assert_close(model.eval()(ids, **states).logits, expected, rtol=0, atol=1e-4, msg=name)
    rows = load_recipe("generate").main(["--model_name_or_path", run, "--prompts", "2", "--max_new_tokens", "3"])
    assert len(rows) == 1


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_is_not_overwritten_and_resumes(
    recipe, arguments, tmp_path, monkeypatch, capsys
):
    original = HRPOTrainer.training_step

    def interrupt(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HRPOTrainer, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(arguments)
    assert "Interrupted (Ctrl-C). The last whole checkpoint is" in (err := capsys.readouterr().err)
    assert "checkpoint-2. Go on with the same command and `--resume_from_checkpoint true`" in err
    assert read_run_record(tmp_path / "run")["status"] == "interrupted"
    monkeypatch.undo()

    with pytest.raises(ValueError, match=r"holds an unfinished run .*--resume_from_checkpoint true"):
        recipe.main(arguments)
    trainer = recipe.main([*arguments, "--resume_from_checkpoint", "true"])
    assert trainer.state.global_step == 4
    assert read_run_record(tmp_path / "run")["status"] == "finished"
    with pytest.raises(ValueError, match="holds a finished run"):
        recipe.main(arguments)


def test_an_unknown_key_in_the_settings_is_an_error(recipe, tmp_path):
    settings = tmp_path / "settings.yaml"
    known = {"output_dir": str(tmp_path / "run"), "model_name_or_path": "model"}
    settings.write_text(yaml.safe_dump(known | {"learning_rates": 1.0}))
    with pytest.raises(ValueError, match="learning_rates"):
        recipe.main(["--config", str(settings)])


def test_missing_columns_are_an_error_that_names_those_found(recipe, arguments, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"problem": "1+1", "answer": "#### 2"}\n')
    with pytest.raises(ValueError, match="question"):
        recipe.main([*arguments, "--dataset_name_or_path", str(data)])
    assert read_run_record(tmp_path / "run")["status"] == "failed"


def test_a_missing_data_file_is_an_error_that_names_it(recipe, arguments, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=r"nowhere\.jsonl"):
        recipe.main([*arguments, "--dataset_name_or_path", str(tmp_path / "nowhere.jsonl")])


def test_an_unknown_task_is_an_error(recipe, arguments, capsys):
    with pytest.raises((ValueError, SystemExit)):
        recipe.main([*arguments, "--task", "gsm9k"])


@pytest.mark.parametrize(
    ("task", "words"), [("open_qa", "Give `dataset_name_or_path`"), ("gsm9k", "must be one of gsm8k, math")]
)
def test_a_task_without_a_data_set_and_an_unknown_one_are_named(recipe, task, words):
    with pytest.raises(ValueError, match=words):
        recipe.ScriptArguments(task=task)


@pytest.mark.parametrize("name", sorted(path.name for path in (RECIPES / "configs/hrpo_gsm8k").glob("*.yaml")))
def test_every_settings_file_parses(recipe, name, tmp_path):
    settings = yaml.safe_load((RECIPES / "configs/hrpo_gsm8k" / name).read_text())
    # bf16 needs a GPU to parse
    settings |= {"bf16": False, "use_cpu": True, "output_dir": str(tmp_path)}
    parser = recipe.RecipeParser((recipe.ScriptArguments, recipe.HRPOConfig, recipe.HRPOModelConfig))
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    _, training, model = parser.parse_args_and_config(["--config", str(path)])
    assert isinstance(training.learning_rate, float) and model.model_name_or_path


def write_evaluation(folder, scores, golds="512512"):
    folder.mkdir()
    rows = (
        {"id": id, "gold": gold, "scores": {"strict": score}} for id, (score, gold) in enumerate(zip(scores, golds))
    )
    (folder / "greedy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_evaluations_are_compared_problem_by_problem(tmp_path):
    first = write_evaluation(tmp_path / "a", [0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    second = write_evaluation(tmp_path / "b", [1.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    result = load_recipe("compare_evaluations").main(["--first", first, "--second", second])["strict"]
    assert result.value == pytest.approx(2 / 6)
    assert result.p_value == pytest.approx(0.625)  # 3 gained, 1 lost: 10 / 16
    assert result.low <= result.value <= result.high


def test_evaluations_of_different_problems_are_not_compared(tmp_path):
    first, second = write_evaluation(tmp_path / "a", [1.0]), write_evaluation(tmp_path / "b", [1.0, 0.0])
    with pytest.raises(ValueError, match="different problems: 1 in .* 2 in .* 1 in both"):
        load_recipe("compare_evaluations").main(["--first", first, "--second", second])
    third = write_evaluation(tmp_path / "c", [1.0, 0.0], golds="57")
    with pytest.raises(
        ValueError, match="different problems: 1 of 2 have other right answers, such as problem 1: '1'"
    ):
        load_recipe("compare_evaluations").main(["--first", second, "--second", third])
    with pytest.raises(FileNotFoundError, match=r"nowhere/greedy\.jsonl` does not exist"):
        load_recipe("compare_evaluations").main(["--first", first, "--second", str(tmp_path / "nowhere")])


@pytest.mark.slow
def test_the_demo_writes_its_table_and_curves(tmp_path, capsys):
    demo = load_recipe("demo")
    sizes = {"sft_steps": 2, "rl_steps": 1, "samples_per_step": 8, "test_problems": 4}
    sizes |= {"latent_steps": 2, "latent_test_problems": 5}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    metrics = demo.main(["--output_dir", str(tmp_path / "demo"), *options])
    latent = {"latent", "latent, off", "latent, shuffled", "discrete", "pause"}
    assert set(metrics) == {"before", "GRPO", "HRPO"} | latent
    assert set(metrics["HRPO"]) == {"pass@1", "pass@8", "greedy"}
    table = (tmp_path / "demo" / "demo.md").read_text()
    assert "does not show that latent reasoning" in table
    assert "results/latent has the study" in table and "![" in table
    assert {"reward_curves.png", "latent_accuracy.png"} <= set(os.listdir(tmp_path / "demo"))
    assert os.listdir(tmp_path / "demo" / "hrpo")


def test_arms_of_the_latent_demo_differ_in_what_they_are_taught_alone():
    demo = load_recipe("demo_latent")
    problems = demo.split_set_problems(train=6, test=0)["train"]
    taught = {arm: demo.train_rows(problems, arm, seed=0) for arm in demo.ARMS}
    assert taught["latent"] == taught["pause"]
    for arm in demo.ARMS:
        assert [row["prompt"] for row in taught[arm]] == [row["prompt"] for row in problems]
    chains = [row["steps"] for row in taught["discrete"]]
    assert chains[::2] == [row["steps"] for row in problems[::2]]
    assert chains[1::2] == [demo.set_runs(row, 1, 0)[0] for row in problems[1::2]]
