"""The plan: which runs are due with what is finished."""

import pytest

from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.plan import at_the_edge, make_plan


def make_grid(**tune):
    data = {
        "name": "study",
        "recipe": "recipe.py",
        "axes": {"model": {"llama": {}, "gpt": {}}, "arm": {"none": {}, "mse": {}}},
        "seeds": [0, 1],
        "metrics": ["eval_loss"],
    }
    if tune:
        data["tune"] = {"option": "lr", "values": [1, 2, 3], "metric": "eval_loss"} | tune
    return parse_grid(data)


def losses(best, done=lambda run: True):
    """Metrics in which `best[cell name]` is the best value, of the runs that are done."""
    return lambda run: {"eval_loss": abs(run.value - best[run.cell.name])} if done(run) else None


BEST = {"model=llama,arm=none": 1, "model=llama,arm=mse": 2, "model=gpt,arm=none": 3, "model=gpt,arm=mse": 2}


def test_without_tuning_all_seeds_are_available_at_once():
    plan = make_plan(make_grid(), lambda run: None)
    assert len(plan.runs) == len(plan.final) == 8


def test_at_first_only_the_tuning_runs_are_available():
    plan = make_plan(make_grid(seed=0), lambda run: None)
    assert {(run.value, run.seed) for run in plan.runs} == {(1, 0), (2, 0), (3, 0)}
    assert len(plan.runs) == 12
    assert [run.id for run in plan.waiting] == [f"{cell},lr=?,seed=1" for cell in BEST]


def test_a_cell_goes_on_as_soon_as_its_own_tuning_is_complete():
    plan = make_plan(make_grid(seed=0), losses(BEST, done=lambda run: run.cell.name == "model=gpt,arm=none"))
    assert plan.chosen == {"model=gpt,arm=none": 3}
    assert plan.runs[-1].id == "model=gpt,arm=none,lr=3,seed=1"


def test_the_chosen_tuning_run_is_its_seed_s_final_run():
    plan = make_plan(make_grid(seed=0), losses(BEST))
    assert plan.chosen == BEST
    assert len(plan.runs) == 12 + 4
    assert "model=llama,arm=mse,lr=2,seed=0" in plan.final
    assert len(plan.final) == 8


def test_a_tuning_seed_outside_the_seeds_is_no_final_run():
    plan = make_plan(make_grid(seed=7), losses(BEST))
    assert len(plan.runs) == 12 + 8
    assert not any(run.endswith("seed=7") for run in plan.final)


def test_the_highest_metric_wins_with_mode_max():
    assert make_plan(make_grid(mode="max"), losses(BEST)).chosen["model=llama,arm=none"] == 3


def test_per_averages_the_metric_over_the_other_axes():
    # On average over llama's arms 2 is best, though each arm alone would choose 1 or 3
    table = {"none": {1: 0.0, 2: 0.2, 3: 1.0}, "mse": {1: 1.0, 2: 0.2, 3: 0.0}}
    plan = make_plan(make_grid(per=["model"]), lambda run: {"eval_loss": table[run.cell.levels["arm"]][run.value]})
    assert set(plan.chosen.values()) == {2}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_diverged_run_is_never_chosen(mode):
    plan = make_plan(make_grid(mode=mode), lambda run: {"eval_loss": "nan" if run.value != 2 else 5.0})
    assert set(plan.chosen.values()) == {2}


def test_a_metric_that_the_recipe_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="no metric `eval_loss` to tune by"):
        make_plan(make_grid(seed=0), lambda run: {"accuracy": 1.0})


def test_only_the_lowest_and_highest_value_are_at_the_edge():
    assert [at_the_edge(make_grid(seed=0), value) for value in (1, 2, 3)] == [True, False, True]


def test_shorter_tuning_runs_choose_the_value_and_are_no_final_runs():
    grid = make_grid(seed=0, options={"max_steps": 5})
    plan = make_plan(grid, losses(BEST))
    assert plan.chosen == BEST
    assert len(plan.runs) == 12 + 8 and len(plan.final) == 8
    trial, final = plan.runs[0], plan.runs[-1]
    assert (trial.id, trial.options) == ("model=llama,arm=none,lr=1,tuning,seed=0", {"lr": 1, "max_steps": 5})
    assert (final.id, final.options) == ("model=gpt,arm=mse,lr=2,seed=1", {"lr": 2})


def test_with_shorter_tuning_runs_all_seeds_wait_for_the_choice():
    plan = make_plan(make_grid(seed=0, options={"max_steps": 5}), lambda run: None)
    assert [run.seed for run in plan.waiting] == [0, 1] * len(BEST)
