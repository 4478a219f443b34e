"""The latent study: what its grids may tune on, its settings, and one comparison in miniature."""

import json

import pytest
import torch
import yaml
from repository import RECIPES
from safetensors.torch import load_file

from hf_evidenceflow.recipes import compare_latent, compare_latent_arm
from hf_evidenceflow.recipes.compare_latent_arm import LatentArmArguments
from hf_evidenceflow.recipes.experiments.grid_file import load_grid, parse_grid


CONFIGS = RECIPES / "configs" / "compare_latent"
TUNING = yaml.safe_load((CONFIGS / "tuning.yaml").read_text())


def test_a_grid_that_tunes_on_test_problems_is_refused():
    grid = parse_grid(TUNING | {"overrides": TUNING["overrides"] | {"evaluate_on": "test"}})
    with pytest.raises(ValueError, match="evaluate_on: validation"):
        compare_latent.check_grid(grid, "tuning.yaml")


def test_metrics_of_another_split_are_refused():
    with pytest.raises(ValueError, match="test_accuracy"):
        compare_latent.check_grid(parse_grid(TUNING | {"metrics": ["test_accuracy"]}), "tuning.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_of_the_study_are_accepted(path):
    compare_latent.check_grid(load_grid(path), str(path))


def test_the_headline_has_neither_rule_nor_seed_of_the_tuning():
    headline = load_grid(CONFIGS / "headline.yaml")
    rules = {cell.options["rule_seed"] for cell in headline.cells}
    assert len(rules) == 3 and TUNING["overrides"]["rule_seed"] not in rules
    assert len(headline.seeds) == 5 and not {TUNING["tune"]["seed"], *TUNING["seeds"]} & set(headline.seeds)


def picked_rates(tuning):
    path = RECIPES.parent / "results" / "latent" / tuning / "picked.yaml"
    return yaml.safe_load(path.read_text())["learning_rate"]


def test_the_headline_takes_the_picked_learning_rates():
    picked = picked_rates("tuning") | {"codi": picked_rates("codi_tuning")["codi,1"]}
    rates = {cell.options["arm"]: cell.options["learning_rate"] for cell in load_grid(CONFIGS / "headline.yaml").cells}
    assert rates == {arm: picked[arm] for arm in rates}


def test_a_run_makes_problems_of_its_own_split_only(monkeypatch):
    asked = []

    def split(**sizes):
        asked.append(sizes)
        return {"train": [], "validation": [], "test": []}

    task = compare_latent_arm.THOUGHT_TASKS["sets"]._replace(split=split)
    monkeypatch.setitem(compare_latent_arm.THOUGHT_TASKS, "sets", task)
    args = LatentArmArguments(evaluate_on="validation", eval_problems=7)
    args.problems(5)
    assert [(each["test"], each["validation"], each["train"]) for each in asked] == [(0, 7, 5)]


@pytest.mark.parametrize("task", compare_latent_arm.THOUGHT_TASKS)
def test_the_problems_of_each_task_have_what_the_evaluation_reads(task):
    _, (problem, *_) = LatentArmArguments(task=task, eval_problems=3).problems(1)
    assert problem["answer"] in problem["candidates"] and len(problem["candidates"]) == 2
    assert problem["prompt"] and problem["thought_targets"]


@pytest.mark.parametrize(
    ("setting", "value"), [("arm", "latnt"), ("task", "chess"), ("evaluate_on", "train"), ("eval_problems", 0)]
)
def test_arguments_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"`{setting}`"):
        LatentArmArguments(**{setting: value})


def test_trainer_settings_take_the_place_of_the_arms(monkeypatch):
    class Asked(Exception):
        pass

    def config(**settings):
        raise Asked(settings["distill_weight"], settings["objective"])

    monkeypatch.setattr(compare_latent_arm, "LatentSFTConfig", config)
    args = LatentArmArguments(arm="codi", trainer_settings={"distill_weight": 0.25})
    train, _ = args.problems(2)
    with pytest.raises(Asked, match=r"0\.25, 'distill'"):
        compare_latent_arm.train_arm(args, compare_latent_arm.LATENT_ARMS["codi"], train, args.tokenizer())


def test_loops_are_for_arms_that_loop():
    with pytest.raises(ValueError, match="needs an arm that loops"):
        LatentArmArguments(arm="pause_steps", num_loops=4)


def test_an_arm_that_loops_begins_from_the_weights_of_the_others(tmp_path):
    args = LatentArmArguments(arm="lotus", hidden_size=8)
    for name in ("lotus", "none"):
        arm = compare_latent_arm.LATENT_ARMS[name]
        settings = compare_latent_arm.LatentSFTConfig("unused", report_to="none")
        compare_latent_arm.save_untrained(args, arm, settings, args.tokenizer(), str(tmp_path / name))
    config = json.loads((tmp_path / "lotus" / "config.json").read_text())
    assert (config["num_loops"], config["loop_token_id"]) == (8, args.tokenizer().unk_token_id)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("lotus", "none"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_study_in_miniature_is_reported_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPES.parent)
    command = ["--config", str(CONFIGS / "smoke.yaml"), "--output_dir", str(tmp_path)]
    assert compare_latent.main(command) == 0

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [each["arm"] for each in report["arms"]] == ["latent_soft", "discrete", "pause_soft"]
    assert set(report["arms"][0]["means"]) > {"test_accuracy", "test_off", "test_shuffle", "test_zero"}
    assert {each["first"] for each in report["contrasts"]} == {"discrete", "pause_soft"}
    assert (tmp_path / "report" / "accuracy.png").exists()

    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")}
    assert len(records) == 6 and compare_latent.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in records} == records


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_learning_rates_are_picked_by_the_validation_problems(monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPES.parent)
    grid = yaml.safe_load((CONFIGS / "smoke.yaml").read_text())
    grid["overrides"] |= {"evaluate_on": "validation", "eval_problems": 4, "train_steps": 1}
    grid["axes"]["arm"] = {"none": {"arm": "none"}}
    tune = {"option": "learning_rate", "values": [0.001, 0.1], "metric": "validation_forced", "mode": "max", "seed": 3}
    grid |= {"tune": tune, "seeds": [3], "baseline": {"arm": "none"}, "metrics": ["validation_forced"]}
    config = tmp_path / "grid.yaml"
    config.write_text(yaml.safe_dump(grid))
    assert compare_latent.main(["--config", str(config), "--output_dir", str(tmp_path / "out")]) == 0

    tuned = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["tuning"]["none"]
    picked = yaml.safe_load((tmp_path / "out" / "report" / "picked.yaml").read_text())["learning_rate"]["none"]
    assert str(picked) == max(tuned, key=tuned.get)
