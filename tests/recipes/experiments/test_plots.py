"""The pictures of a report show what the runs have."""

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from hf_evidenceflow.recipes.experiments.plots import plot_curves, plot_differences
from hf_evidenceflow.recipes.experiments.summary import EQUAL_TIME, EQUAL_TOKENS, Comparison


@pytest.fixture
def saved(monkeypatch):
    """The figures that were saved."""
    figures, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def grid_and_rows(evaluations):
    cells = [SimpleNamespace(levels={"arm": arm}) for arm in ("none", "mse")]
    grid = SimpleNamespace(
        name="study",
        axes={"arm": ["none", "mse"]},
        cells=cells,
        metrics=["eval_loss"],
        is_baseline=lambda cell: cell.levels["arm"] == "none",
    )
    rows = [
        {
            "final": True,
            "cell": cell.levels,
            "seed": seed,
            "evals": [
                {"step": step, "eval_loss": 5 - step + 0.1 * seed + place} for step in range(1, evaluations + 1)
            ],
        }
        for place, cell in enumerate(cells)
        for seed in (0, 1, 2)
    ]
    return grid, rows


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_with_several_evaluations_get_curves(saved, tmp_path):
    plot_curves(*grid_and_rows(4), tmp_path)
    (axes,) = saved[0].axes
    assert legend(saved[0]) == ["none", "mse"]
    assert axes.get_xlabel() == "optimizer step" and axes.get_ylabel() == "nats per token"


def test_an_arm_without_evaluations_is_not_in_the_legend(saved, tmp_path):
    grid, rows = grid_and_rows(4)
    for row in rows:
        row["evals"] = row["evals"] if row["cell"]["arm"] == "mse" else []
    plot_curves(grid, rows, tmp_path)
    assert legend(saved[0]) == ["mse"]


def test_runs_with_one_evaluation_get_their_last_values_seed_by_seed(saved, tmp_path):
    plot_curves(*grid_and_rows(1), tmp_path)
    (axes,) = saved[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["none", "mse"]
    seeds, mean, *_ = axes.lines
    assert list(seeds.get_xdata()) == pytest.approx([4.0, 4.1, 4.2]) and list(mean.get_xdata()) == pytest.approx([4.1])


@pytest.mark.parametrize("bases, named", [((EQUAL_TOKENS,), 2), ((EQUAL_TOKENS, EQUAL_TIME), 3)])
def test_the_legend_of_the_differences_names_what_is_drawn(bases, named, saved, tmp_path):
    comparisons = [
        Comparison(
            cell={"arm": "mse"},
            baseline={"arm": "none"},
            group="",
            arm="mse",
            metric="eval_loss",
            basis=basis,
            seeds=[0, 1],
            differences={0: 0.1, 1: 0.3},
            difference=0.2,
            low=0.0,
            high=0.4,
            p_value=0.3,
        )
        for basis in bases
    ]
    plot_differences(SimpleNamespace(comparisons=comparisons, metrics=["eval_loss"]), tmp_path / "differences.png")
    assert len(legend(saved[0])) == named
