"""The report on the layers of an experiment's models."""

import math

from hf_evidenceflow.recipes.experiments.layer_report import add_perplexity, difference_table, layer_table, plot_layers


def rows(seeds=(0, 1)):
    return [
        {
            "group": "llama",
            "arm": arm,
            "seed": seed,
            "layer": layer,
            "lens_loss": math.log(start - 10 * layer + seed),
            "state_norm": 1.0 + layer,
            "effective_rank": 7.0 + seed,
            "relative_step": 0.5,
        }
        for arm, start in (("none", 100), ("mse", 90))
        for seed in seeds
        for layer in range(6)
    ]


def test_an_arm_has_its_exits_and_their_spread_over_seeds():
    table = layer_table(add_perplexity(rows()), "llama").split("\n")
    assert "exit after layer 2 | exit after layer 3 | exit after layer 4 | full depth" in table[0]
    # Means of two seeds that differ by 1; half a t interval of two values is 12.706 * 0.5
    assert "| none | 2 | 90.5 ± 6.4 | 80.5 ± 6.4 | 70.5 ± 6.4 | 50.5 ± 6.4 |" in table[2]
    assert "| 6.0 ± 0.0 | 7.5 ± 6.4 |" in table[2]
    assert table[3].startswith("| mse | 2 | 80.5")


def test_an_arm_is_compared_with_the_baseline_row_by_row():
    losses = {("llama", "none"): [[3.0, 5.0], [3.0, 7.0]], ("llama", "mse"): [[2.0, 4.0], [2.0, 6.0]]}
    table = difference_table(losses, "llama", "none").split("\n")
    assert table[2:] == ["| none | 4.5000 | - |", "| mse | 3.5000 | -1.0000 [-1.0000, -1.0000] |"]


def test_a_single_seed_has_no_interval():
    assert "±" not in layer_table(add_perplexity(rows(seeds=(0,))), "llama")


def test_a_diverged_layer_still_has_a_finite_perplexity():
    (row,) = add_perplexity([{"lens_loss": 1e6}])
    assert math.isfinite(row["lens_perplexity"])


def test_the_picture_is_written(tmp_path):
    path = plot_layers(add_perplexity(rows()), "llama", tmp_path / "layers.png")
    assert path.read_bytes().startswith(b"\x89PNG")
