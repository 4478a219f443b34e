"""The report of the latent study: contrasts by hand, groups and draws, tables."""

import math

import pytest

from hf_evidenceflow.recipes.experiments.grid_file import parse_grid
from hf_evidenceflow.recipes.experiments.latent_report import (
    arm_means,
    by_group,
    control_contrasts,
    plot_accuracy,
    report_markdown,
    state_contrasts,
)


GRID = {
    "name": "study",
    "recipe": "recipes/compare_latent_arm.py",
    "axes": {
        "arm": {"soft": {"arm": "latent_soft"}, "chain": {"arm": "discrete"}, "pause": {"arm": "pause"}},
        "rule": {"0": {"rule_seed": 0}, "1": {"rule_seed": 1}},
    },
    "seeds": [0, 1],
    "baseline": {"arm": "soft"},
    "metrics": ["test_accuracy", "test_off"],
}
# By rule and seed: 0/0, 0/1, 1/0, 1/1
SOFT = [0.9, 0.8, 0.9, 1.0]
CHAIN = [0.5, 0.6, 0.7, 0.6]  # soft is .4, .2, .2, .4 better
PAUSE = [0.5, 0.5, 0.6, 0.5]  # .4, .3, .3, .5


def row(arm, rule, seed, final=True, **metrics):
    metrics = {f"test_{name}": value for name, value in metrics.items()} | {"train_seconds": 7.0}
    return {"cell": {"arm": arm, "rule": rule}, "seed": seed, "final": final, "metrics": metrics}


def rows():
    draws = [(rule, seed) for rule in "01" for seed in (0, 1)]
    found = [row("soft", *draw, accuracy=value, off=value - 0.5) for draw, value in zip(draws, SOFT)]
    found += [row("chain", *draw, accuracy=value) for draw, value in zip(draws, CHAIN)]
    return found + [row("pause", *draw, accuracy=value) for draw, value in zip(draws, PAUSE)]


@pytest.fixture
def grid():
    return parse_grid(GRID)


def test_a_contrast_is_paired_over_rules_and_seeds(grid):
    ((_, arms),) = by_group(grid, rows()).items()
    contrast = control_contrasts(grid, "", arms)[0]
    # Mean .3, standard deviation sqrt(4 * .01 / 3); 3.182446 is the .975 quantile of t with 3 degrees of freedom
    half = 3.182446 * math.sqrt(0.04 / 3) / 2
    assert (contrast.second, contrast.first) == ("soft", "chain")
    assert len(contrast.seeds) == 4
    assert (contrast.difference, contrast.low, contrast.high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))


def test_holm_corrects_p_values_and_intervals_over_the_controls(grid):
    ((_, arms),) = by_group(grid, rows()).items()
    chain, pause = control_contrasts(grid, "", arms)
    assert pause.p_value < chain.p_value
    assert (pause.p_holm, chain.p_holm) == pytest.approx((2 * pause.p_value, max(2 * pause.p_value, chain.p_value)))
    assert (chain.holm_low, chain.holm_high) == pytest.approx((chain.low, chain.high))
    # 4.176535 is the .9875 quantile of t with 3 degrees of freedom: .05 shared by two controls
    error = (pause.high - pause.low) / 2 / 3.182446
    assert pause.holm_low == pytest.approx(pause.difference - 4.176535 * error)


def test_an_arm_is_contrasted_with_itself_without_its_states(grid):
    ((_, arms),) = by_group(grid, rows()).items()
    (contrast,) = state_contrasts(grid, "", "soft", arms["soft"])
    assert contrast.first == "soft, off" and contrast.difference == pytest.approx(0.5)
    assert state_contrasts(grid, "", "chain", arms["chain"]) == []


def test_only_pairs_that_both_arms_have_count(grid):
    ((_, arms),) = by_group(
        grid, [each for each in rows() if each["cell"]["arm"] == "soft" or each["seed"] == 0]
    ).items()
    assert [len(each.seeds) for each in control_contrasts(grid, "", arms)] == [2, 2]


def test_tuning_runs_that_lost_are_left_out(grid):
    assert by_group(grid, [row("soft", "0", 0, final=False, accuracy=0.3)]) == {}


def test_levels_of_other_axes_are_groups_of_their_own():
    axes = GRID["axes"] | {"moves": {"4": {"eval_problems": 4}, "8": {"eval_problems": 8}}}
    grid = parse_grid(GRID | {"axes": axes})
    found = [{**each, "cell": each["cell"] | {"moves": moves}} for moves in ("4", "8") for each in rows()]
    groups = by_group(grid, found)
    assert list(groups) == ["moves=4", "moves=8"] and list(groups["moves=8"]) == ["soft", "chain", "pause"]


def test_the_report_shows_means_contrasts_and_every_run(grid, tmp_path):
    ((_, arms),) = by_group(grid, rows()).items()
    means = [arm_means(grid, "", arm, runs) for arm, runs in arms.items()]
    text = report_markdown(
        grid, means, control_contrasts(grid, "", arms), state_contrasts(grid, "", "soft", arms["soft"])
    )
    assert "| soft | 4 | 0.900 [0.770, 1.030] | 0.400 [0.270, 0.530] | 7 |" in text
    assert "| soft - chain | accuracy | 4 | +0.300 | [+0.116, +0.484] |" in text
    assert "| soft - soft, off | accuracy | 4 | +0.500 |" in text
    assert "- chain: 0/0: 0.5000, 0/1: 0.6000, 1/0: 0.7000, 1/1: 0.6000" in text
    assert plot_accuracy(grid, means, tmp_path / "accuracy.png").stat().st_size > 1000
