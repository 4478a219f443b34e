"""The comparison of latent thinking with GRPO: its report's functions, and one run in miniature."""

import importlib
import json

import pytest
import yaml
from repository import RECIPES


CONFIGS = RECIPES / "configs" / "compare"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("compare")


@pytest.fixture
def compare_arm(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("compare_arm")


def test_mean_metrics_leave_out_what_a_seed_lacks(compare):
    runs = {
        0: {"metrics": {"eval_accuracy": 0.2, "hidden_ratio": 0.3}},
        1: {"metrics": {"eval_accuracy": 0.5}},
    }
    assert compare.mean_metrics(runs) == {"accuracy": pytest.approx(0.35)}


def test_mean_history_takes_the_steps_that_all_seeds_have(compare):
    first = [{"step": 1, "reward": 0.2}, {"step": 2, "reward": 0.4}, {"step": 2, "eval_accuracy": 0.9}]
    second = [{"step": 2, "reward": 0.6, "entropy": 1.0}]
    assert compare.mean_history([first, second]) == [{"step": 2, "reward": pytest.approx(0.5)}]


def test_a_short_solution_keeps_the_last_step_and_the_answer(compare_arm):
    assert compare_arm.shorten("3+4=7\n7-2=5\n5+1=6\n#### 6") == "5+1=6\n#### 6"


def test_arms_of_other_warm_start_settings_are_refused(compare_arm, tmp_path):
    done = tmp_path / "seed-0" / compare_arm.WARM_UP_DONE
    done.parent.mkdir()
    done.write_text("{}")
    with pytest.raises(ValueError, match="other settings"):
        compare_arm.warm_up(compare_arm.ArmArguments(warm_up_dir=str(tmp_path)), [], None)


@pytest.mark.parametrize(
    ("setting", "value"), [("task", "chess"), ("short_share", 1.5), ("samples_per_step", 12), ("rl_steps", -1)]
)
def test_arguments_out_of_range_are_named(compare_arm, setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        compare_arm.ArmArguments(**{setting: value})


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_all_arms_of_a_config_share_prompts_budget_and_warm_start(compare_arm, path):
    arms = yaml.safe_load(path.read_text())["axes"]["arm"]
    allowed = {"rl_steps", "thinking_mode", "thinking_settings", "weights_of"}
    assert all(set(options) <= allowed for options in arms.values())
    assert len({options["rl_steps"] for options in arms.values()} - {0}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_comparison_in_miniature_is_reported_and_goes_on(compare, monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPES.parent)
    grid = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    grid["seeds"] = [0]
    grid["overrides"] |= {"warm_up_steps": 2, "train_problems": 64, "test_problems": 8}
    config = tmp_path / "grid.yaml"
    config.write_text(yaml.safe_dump(grid))
    command = ["--config", str(config), "--output_dir", str(tmp_path / "out")]
    assert compare.main(command) == 0

    comparison = json.loads((tmp_path / "out" / "report" / "compare.json").read_text())
    assert list(comparison["arms"]) == ["base", "grpo", "hrpo_embedding"]
    assert comparison["arms"]["hrpo_embedding"]["means"]["hidden ratio"] > 0
    assert {"steps", "tokens", "thinking off"} <= {row["basis"] for row in comparison["contrasts"]}
    assert (tmp_path / "out" / "report" / "learning_curves.png").exists()

    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*/run.json")}
    assert len(records) == 3 and compare.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in records} == records
