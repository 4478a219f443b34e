"""The summary and the report: what is compared with what, and that nothing missing goes unsaid."""

import json

import pytest
from hostile_text import HOSTILE, assert_harmless
from PIL import Image

from hf_evidenceflow.evaluation.statistics import SampleComparison
from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.plan import make_plan
from hf_evidenceflow.recipes.experiments.report import report_html, report_markdown, write_report
from hf_evidenceflow.recipes.experiments.summary import SamplesOfArm, summarize


ARMS = {"none": 0.0, "mse": -0.1, "cosine": 0.2}


@pytest.fixture
def grid():
    return parse_grid(
        {
            "name": "a <b> study",
            "recipe": "recipe.py",
            "axes": {"model": {"llama": {}, "gpt": {}}, "arm": {arm: {} for arm in ARMS}},
            "seeds": [0, 1, 2],
            "metrics": ["eval_loss"],
            "baseline": {"arm": "none"},
        }
        | {"name": "study"}
    )


def result(grid, cell, seed, **metrics):
    arm = ARMS[cell.levels["arm"]]
    loss = 2 + arm + 0.3 * seed + 0.01 * arm * seed
    evals = [
        {"step": step, "train_seconds": 2.0 * step, "train_tokens": 64 * step, "eval_loss": loss + 1 - step / 10}
        for step in (2, 5, 10)
    ]
    return {
        "id": grid.run(cell, seed).id,
        "cell": cell.levels,
        "seed": seed,
        "tuned": {},
        "final": True,
        "metrics": {"eval_loss": loss, "train_tokens": 640} | metrics,
        "evals": evals,
        "git": "0123abc",
    }


@pytest.fixture
def rows(grid):
    return [result(grid, cell, seed) for cell in grid.cells for seed in grid.seeds]


def summary_of(grid, rows, folder):
    return summarize(grid, make_plan(grid, lambda run: None), rows, str(folder))


def comparison(summary, arm, basis="equal_tokens", model="gpt"):
    (found,) = [each for each in summary.comparisons if (each.arm, each.group, each.basis) == (arm, model, basis)]
    return found


def test_each_arm_is_compared_with_the_baseline_of_its_own_model(grid, rows, tmp_path):
    for row in rows:
        row["metrics"]["eval_loss"] += 10 * (row["cell"]["model"] == "gpt")
    found = comparison(summary_of(grid, rows, tmp_path), "mse")
    assert found.difference == pytest.approx(-0.101)
    assert found.baseline == {"model": "gpt", "arm": "none"}


def test_only_seeds_that_both_have_are_compared(grid, rows, tmp_path):
    rows = [row for row in rows if not (row["cell"]["arm"] == "none" and row["seed"] == 1)]
    assert comparison(summary_of(grid, rows, tmp_path), "mse").seeds == [0, 2]


def test_an_incomplete_cell_is_listed(grid, rows, tmp_path):
    rows = [row for row in rows if not (row["cell"] == {"model": "gpt", "arm": "mse"} and row["seed"] in (0, 2))]
    summary = summary_of(grid, rows, tmp_path)
    assert summary.missing == ["model=gpt,arm=mse: no result of seed 0, 2"]
    assert "(1 of 3 seeds)" in report_markdown(summary)


def test_a_diverged_run_is_listed_and_left_out(grid, rows, tmp_path):
    rows[-1]["metrics"]["eval_loss"] = float("nan")
    summary = summary_of(grid, rows, tmp_path)
    assert summary.missing[0] == "model=gpt,arm=cosine: eval_loss is nan (seed 2), left out"
    assert comparison(summary, "cosine").seeds == [0, 1]


def test_holm_corrects_over_the_arms_of_one_model(grid, rows, tmp_path):
    summary = summary_of(grid, rows, tmp_path)
    family = [comparison(summary, arm) for arm in ("mse", "cosine")]
    smallest = min(each.p_value for each in family)
    assert min(each.p_holm for each in family) == pytest.approx(2 * smallest)


def test_tuning_runs_that_were_not_chosen_do_not_count(grid, rows, tmp_path):
    extra = result(grid, grid.cells[0], 0, eval_loss=99.0) | {"final": False}
    assert summary_of(grid, [*rows, extra], tmp_path).cells[0].metrics["eval_loss"].mean < 3


def test_different_numbers_of_tokens_are_marked(grid, rows, tmp_path):
    rows[-1]["metrics"]["train_tokens"] = 600
    assert "(tokens differ!)" in report_markdown(summary_of(grid, rows, tmp_path))


def test_a_log_without_a_clock_is_listed(grid, rows, tmp_path):
    for row in rows:
        row["evals"] = []
    summary = summary_of(grid, rows, tmp_path)
    assert "eval_loss of model=llama,arm=mse: at equal wall-clock only for seeds []" in summary.missing[0]


def test_samples_of_the_recipe_are_compared(grid, rows, tmp_path):
    for row in rows:
        better = row["cell"]["arm"] == "mse"
        lines = [json.dumps({"id": i, "correct": int(i < 5 + 7 * better)}) for i in range(20)]
        (tmp_path / "runs" / row["id"]).mkdir(parents=True)
        (tmp_path / "runs" / row["id"] / "eval_samples.jsonl").write_text("\n".join(lines))
    found = {(each.group, each.arm): each.result for each in summary_of(grid, rows, tmp_path).samples}
    assert found["llama", "mse"].difference == pytest.approx(7 / 20)
    assert found["llama", "mse"].pairs == 60
    assert found["gpt", "cosine"].p_value == 1


def test_samples_are_flat_in_the_json_file(grid, rows, tmp_path):
    result = SampleComparison(20, 60, 0.35, 0.2, 0.5, 0.01)
    summary = summary_of(grid, rows, tmp_path)
    summary.samples = [SamplesOfArm({"arm": "mse"}, "llama", "mse", "correct", 3, result)]
    (entry,) = summary.content()["samples"]
    assert entry["pairs"] == 60 and entry["seeds"] == 3 and "result" not in entry and summary.samples[0].result


def test_no_name_can_carry_a_script_into_the_report(tmp_path):
    name, recipe, axis, arm, base, metric, missing, git, picture = HOSTILE[:9]
    grid = parse_grid(
        {"name": "study", "recipe": "recipe.py", "axes": {"model": {"llama": {}}, "arm": {"none": {}, "mse": {}}}}
        | {"seeds": [0, 1], "metrics": ["eval_loss"], "baseline": {"arm": "none"}}
    )
    rows = [result(grid, cell, seed) for cell in grid.cells for seed in grid.seeds]
    summary = summary_of(grid, rows, tmp_path)
    summary.name, summary.recipe, summary.git, summary.missing = name, recipe, [git], [missing]
    summary.baseline, summary.metrics = {axis: base}, [metric]
    for cell in summary.cells:
        cell.arm, cell.metrics = arm, {metric: cell.metrics["eval_loss"]}
    Image.new("RGB", (2, 3)).save(tmp_path / "x.png")
    assert_harmless(report_html(summary, {tmp_path / "x.png": picture}), shown=9)


@pytest.mark.slow
def test_the_report_has_all_its_parts(grid, rows, tmp_path):
    write_report(grid, make_plan(grid, lambda run: None), rows, tmp_path)
    folder = tmp_path / "report"
    parts = {"table.md", "summary.json", "report.html", "differences.png", "curves_llama.png", "curves_gpt.png"}
    assert {path.name for path in folder.iterdir()} == parts
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="curves' not in page
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] == 18 and summary["cells"][0]["metrics"]["eval_loss"]["n"] == 3
