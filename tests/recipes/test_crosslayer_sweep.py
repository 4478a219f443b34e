"""`recipes/crosslayer_sweep.py`: the ranking, and a sweep of two variants."""

import importlib
import json

import pytest
import yaml
from repository import RECIPES


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.chdir(RECIPES.parent)
    return importlib.import_module("crosslayer_sweep")


def row(variant, seed, loss, decay="off", final=True):
    cell = {"variant": variant, "decay": decay}
    return {"final": final, "seed": seed, "cell": cell, "metrics": {"eval_loss": loss}, "id": f"{variant}-{seed}"}


def test_differences_are_paired_by_seed(recipe):
    rows = [row("base", 0, 3.0), row("base", 1, 3.2), row("v2m1", 0, 2.9), row("v2m1", 1, 3.1), row("v2m1", 2, 9.0)]
    line = next(line for line in recipe.ranking(recipe.losses_by_variant(rows)).splitlines() if "v2m1" in line)
    assert "-0.1000" in line and "+0.0043" in line  # the published difference


def test_runs_with_decay_are_left_out_of_the_ranking(recipe):
    rows = [row("v4m4", 0, 3.0), row("v4m4", 1, 5.0, decay="on"), row("v4m4", 2, 6.0, final=False)]
    assert recipe.losses_by_variant(rows) == {"v4m4": {0: 3.0}}


def test_without_base_there_is_no_ranking(recipe):
    with pytest.raises(ValueError, match="No run of `base`"):
        recipe.ranking({"v2m1": {0: 3.0}})


def test_the_rank_correlation_is_that_of_the_common_variants(recipe):
    losses = {name: {0: loss} for name, loss in recipe.PUBLISHED.items()} | {"v2m2": {0: 1.0}}
    assert f"Spearman, {len(recipe.PUBLISHED)} variants): 1.00" in recipe.ranking(losses)


def test_the_grid_has_all_variants_and_decay_on_learned_scales(recipe):
    from hf_evidenceflow.recipes.experiments.grid_file import load_grid

    cells = [cell.levels for cell in load_grid(recipe.GRID).cells]
    assert len({cell["variant"] for cell in cells}) == 17
    assert {cell["variant"] for cell in cells if cell["decay"] == "on"} == {"v4m4", "v4m5", "v4m6", "v4m7"}


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_sweep_ends_with_a_ranking_and_the_learned_parameters(recipe, tmp_path):
    grid = yaml.safe_load((RECIPES / "configs/crosslayer_sweep/smoke.yaml").read_text())
    grid["axes"]["variant"] = {name: grid["axes"]["variant"][name] for name in ("base", "v4m4")}
    grid["seeds"] = [0]
    grid["overrides"] |= {"max_steps": 2, "eval_steps": 2, "generated_documents": 60, "train_vocab_size": 280}
    grid["overrides"] |= {"warmup_steps": 0, "save_steps": 2}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    code = recipe.main(
        ["--config", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "out"), "--launcher", "python"]
    )
    assert code == 0
    assert "| `v4m4` | 1 |" in (tmp_path / "out/ranking.md").read_text()
    learned = json.loads((tmp_path / "out/parameters/v4m4/parameters.json").read_text())
    assert {entry["name"] for entry in learned} == {"score_a", "score_b", "scale"}
