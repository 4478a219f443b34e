import builtins
import json
import sys

import pytest
from PIL import Image

from hf_evidenceflow.report.curves import curve, load_log_history, plot_training_curves


HISTORY = [{"step": step, "reward": step / 7, "loss": -step, "thinking/gate_mean": 0.5} for step in range(1, 8)]


def drawn(path):
    """Number of colours in a picture: an empty one has few."""
    with Image.open(path) as image:
        return image.size, len(image.convert("RGB").getcolors(maxcolors=1 << 24))


def test_one_panel_more_makes_a_wider_picture(tmp_path):
    sizes = [
        drawn(plot_training_curves({"run": HISTORY}, tmp_path / f"{len(keys)}.png", keys=keys))[0]
        for keys in (["reward"], ["reward", "loss"])
    ]
    assert sizes[0][0] < sizes[1][0] and sizes[0][1] == sizes[1][1]


def test_thinking_metrics_are_drawn_where_some_run_has_them(tmp_path):
    plain = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.7}]
    without = drawn(plot_training_curves({"GRPO": plain}, tmp_path / "a.png"))[0]
    together = drawn(plot_training_curves({"GRPO": plain, "HRPO": HISTORY}, tmp_path / "b.png"))[0]
    assert together[0] > without[0]


def test_each_run_adds_its_colour(tmp_path):
    one = drawn(plot_training_curves({"GRPO": HISTORY}, tmp_path / "a.png", keys=["reward"]))[1]
    two = drawn(plot_training_curves({"GRPO": HISTORY, "HRPO": HISTORY}, tmp_path / "b.png", keys=["reward"]))[1]
    assert two > one + 5


def test_no_global_figure_is_left(tmp_path):
    plot_training_curves({"run": HISTORY}, tmp_path / "curves.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_step_logged_twice_counts_once():
    history = [{"step": 2, "reward": 0.1}, {"step": 1, "reward": 0.3}, {"step": 2, "reward": 0.9}]
    assert curve(history, "reward") == ([1, 2], [0.3, 0.9])


def test_values_that_are_not_finite_are_left_out():
    history = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": "nan"}, {"step": 3, "loss": 0.5}, {"loss": 1.0}]
    assert curve(history, "loss") == ([3], [0.5])


def test_an_output_folder_gives_the_log_of_its_newest_checkpoint(tmp_path):
    for step in (100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"step": step, "reward": 1.0}]}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    assert load_log_history(tmp_path) == [{"step": 100, "reward": 1.0}]


def test_a_folder_without_a_log_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trainer_state\.json"):
        load_log_history(tmp_path)


def test_an_unknown_key_is_an_error_that_lists_the_logged_ones(tmp_path):
    with pytest.raises(ValueError, match=r"\['rewards'\].*'reward'"):
        plot_training_curves({"run": HISTORY}, tmp_path / "x.png", keys=["rewards"])


def test_an_empty_log_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_training_curves({"run": []}, tmp_path / "x.png")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"hf-evidenceflow\[plots\]"):
        plot_training_curves({"run": HISTORY}, tmp_path / "x.png")
