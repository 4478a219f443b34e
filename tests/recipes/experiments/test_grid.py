"""The grid: what is multiplied out, and what is refused."""

from pathlib import Path

import pytest

from hf_evidenceflow.recipes.experiments.grid import merge_options, packaged_file
from hf_evidenceflow.recipes.experiments.grid_file import load_grid, parse_grid


def grid_data(**changes):
    data = {
        "name": "study",
        "recipe": "recipe.py",
        "axes": {
            "model": {"llama": {"width": 3}, "gpt": {"width": 5}},
            "arm": {"none": {}, "mse": {"objective": "mse"}},
        },
        "seeds": [0, 1, 2],
        "metrics": ["eval_loss"],
    }
    return data | changes


def names(grid):
    return [cell.name for cell in grid.cells]


def test_the_cells_are_the_product_of_the_axes_in_order():
    expected = ["model=llama,arm=none", "model=llama,arm=mse", "model=gpt,arm=none", "model=gpt,arm=mse"]
    assert names(parse_grid(grid_data())) == expected


def test_exclude_and_only_leave_out_cells():
    only = [{"model": "llama"}, {"model": "gpt", "arm": ["none"]}]
    grid = parse_grid(grid_data(only=only, exclude=[{"model": "llama", "arm": "mse"}]))
    assert names(grid) == ["model=llama,arm=none", "model=gpt,arm=none"]


def test_axes_win_over_overrides_and_overrides_over_the_config():
    grid = parse_grid(grid_data(overrides={"width": 1, "steps": 7}), {"width": 2, "steps": 2, "kept": 2})
    assert grid.cells[0].options == {"width": 3, "steps": 7, "kept": 2}


def test_mappings_are_merged_key_by_key():
    assert merge_options({"x": {"a": 1, "b": 2}, "y": {"a": 1}}, {"x": {"b": 3}, "y": 5}) == {
        "x": {"a": 1, "b": 3},
        "y": 5,
    }


def test_the_config_s_own_seed_and_folder_do_not_come_in():
    assert parse_grid(grid_data(), {"seed": 42, "output_dir": "x"}).cells[0].options == {"width": 3}


def test_a_run_is_named_by_its_cell_tuned_value_and_seed():
    grid = parse_grid(grid_data(tune={"option": "learning_rate", "values": ["1e-3", 0.003], "metric": "eval_loss"}))
    run = grid.run(grid.cells[1], seed=2, value=0.003)
    assert run.id == "model=llama,arm=mse,learning_rate=0.003,seed=2"
    assert run.options["learning_rate"] == 0.003


def test_a_tuned_value_that_yaml_reads_as_text_becomes_a_number():
    grid = parse_grid(grid_data(tune={"option": "learning_rate", "values": ["1e-3", 0.003], "metric": "eval_loss"}))
    assert grid.tune.values == [0.001, 0.003]


def test_the_baseline_of_a_cell_has_the_same_other_levels():
    grid = parse_grid(grid_data(baseline={"arm": "none"}))
    assert grid.baseline_of(grid.cells[3]).name == "model=gpt,arm=none"
    assert grid.baseline_of(grid.cells[2]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "Unknown key `axis` in the grid: did you mean `axes`"),
        ({"base_options": {}}, "Unknown key `base_options`"),
        ({"tune": {"option": "lr", "valeus": [1, 2], "metric": "m"}}, "did you mean `values`"),
        ({"exclude": [{"arms": "mse"}]}, "did you mean `arm`"),
        ({"baseline": {"arm": "nome"}}, "did you mean `none`"),
        ({"tune": {"option": "width", "values": [1, 2], "metric": "m"}}, "also set by the axis `model`"),
        ({"axes": {"a": {"x": {"w": 1}}, "b": {"y": {"w": 2}}}}, "both set `w`"),
        ({"axes": {"a": {True: {}}}}, "Quote it"),
        ({"axes": {"a": {"x/y": {}}}}, "letters, digits"),
        ({"overrides": {"seed": 3}}, "which the runner decides"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"baseline": {"arm": "none"}, "relative_cost": {"none": 1.1, "mse": 2.0}}, "must be 1, got 1.1"),
        (
            {"axes": {"arm": {"none": {}, "a": {}, "b": {}}}, "baseline": {"arm": "none"}, "relative_cost": {"a": 2}},
            "'b'",
        ),
        ({"exclude": [{"arm": ["none", "mse"]}]}, "leave no cell"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_fits(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_grid(grid_data(**changes))


def test_trackio_that_is_not_installed_is_an_early_import_error(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install trackio"):
        parse_grid(grid_data(trackio=True))


def test_with_trackio_the_runs_share_a_project(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    grid = parse_grid(grid_data(trackio=True))
    run = grid.run(grid.cells[0], seed=1)
    assert (run.options["report_to"], run.options["project"], run.options["run_name"]) == ("trackio", "study", run.id)


def test_a_recipe_that_does_not_exist_is_an_error(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("{name: x, recipe: nothing.py, seeds: [0], metrics: [m]}")
    with pytest.raises(ValueError, match=r"names no file: 'nothing\.py'"):
        load_grid(path)


def test_options_given_next_to_the_grid_go_over_its_own(tmp_path):
    path = tmp_path / "grid.yaml"
    recipe = tmp_path / "recipe.py"
    recipe.touch()
    path.write_text(
        f"name: x\nrecipe: {recipe}\nseeds: [0]\nmetrics: [eval_loss]\n"
        "overrides: {train_file: a.txt, sizes: {width: 2, depth: 3}}\n"
    )
    grid = load_grid(path, {"train_file": "b.txt", "sizes": {"width": 5}})
    assert grid.cells[0].options == {"train_file": "b.txt", "sizes": {"width": 5, "depth": 3}}
    with pytest.raises(ValueError, match="seed"):
        load_grid(path, {"seed": 3})


def test_a_published_grid_is_read_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = load_grid("recipes/configs/run_experiment/smoke.yaml")
    assert grid.base_options["model_type"] and packaged_file(grid.recipe).name == "pretrain_clm.py"
    assert packaged_file("recipes/nothing.py") == Path("recipes/nothing.py")
