import math

import pytest
from PIL import Image

from hf_evidenceflow.report.curves import curve, load_log_history
from hf_evidenceflow.report.run_curves import plot_layer_terms, plot_log_fit, plot_run_curves, plot_thoughts
from hf_evidenceflow.report.run_metrics import log_fit, loss_key, rolling_cv, run_metrics, with_derived


PLAIN = [{"step": step, "loss": 5 - math.log(step), "learning_rate": 0.1 / step} for step in range(1, 41)]
LAYERS = {f"evidence_flow/layer_{layer}": 2.0 - layer / 10 for layer in range(3)}
SUPERVISED = [
    {
        "step": row["step"],
        "loss": row["loss"] + 0.3,
        "evidence_flow/model_loss": row["loss"],
        "evidence_flow/loss": 5.7,
    }
    | LAYERS
    for row in PLAIN
]

LATENT = [
    {"step": step, "loss": 2.0, "latent/kl": 1.0 / step, "latent/kl_1": 0.5 / step, "latent/kl_2": 1.5 / step}
    | {"latent/target_share": 0.5, "latent/answer_loss": 1.0, "latent/stage": 2}
    for step in range(1, 11)
]


def size(path):
    with Image.open(path) as image:
        return image.size


def test_loss_p_is_never_in_the_loss():
    assert loss_key(SUPERVISED) == "evidence_flow/model_loss"
    assert curve(with_derived(SUPERVISED), "derived/loss") == curve(with_derived(PLAIN), "derived/loss")


@pytest.mark.parametrize("other", ["evidence_flow/loss", "reward", "rewards/chosen"])
def test_a_loss_that_is_no_cross_entropy_is_not_taken_for_one(other):
    assert loss_key([{"step": 1, "loss": 2.0}, {"step": 1, other: 3.0}]) is None


def test_the_perplexity_is_that_of_the_loss_and_a_diverged_one_is_left_out():
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 5000.0}]
    assert curve(with_derived(history), "derived/perplexity") == ([1], [math.exp(2)])


def test_a_logged_held_out_perplexity_is_kept():
    derived = with_derived([{"step": 1, "eval_loss": 2.0}])
    assert curve(derived, "eval_perplexity")[1] == [math.exp(2)]
    logged = with_derived([{"step": 1, "eval_loss": 2.0, "eval_perplexity": 9.0}])
    assert curve(logged, "eval_perplexity")[1] == [9.0]


def test_the_rolling_cv_is_deviation_over_mean_of_each_whole_window():
    assert rolling_cv([1.0, 3.0, 3.0], 2) == pytest.approx([1 / 2, 0])
    assert rolling_cv([1.0, 3.0], 3) == []


def test_the_cv_stands_at_the_last_step_of_its_window():
    steps, _ = curve(with_derived(PLAIN, window=10), "derived/perplexity_cv")
    assert steps == list(range(10, 41))


def test_the_fit_finds_intercept_and_slope():
    fit = log_fit(*curve(PLAIN, "loss"))
    assert fit == pytest.approx((5, -1, 1, 40))


def test_the_fit_leaves_step_zero_out_and_needs_three_points():
    assert log_fit([0, 1, 2], [1.0, 2.0, 3.0]) is None


def test_a_loss_without_trend_has_no_explained_variance():
    fit = log_fit([1, 2, 4], [1.0, 2.0, 1.0])
    assert fit.slope == pytest.approx(0, abs=1e-12) and fit.r_squared == pytest.approx(0, abs=1e-12)


def test_the_metrics_count_unsteady_windows():
    perplexities = [10.0] * 5 + [30.0] + [10.0] * 4
    history = [{"step": step, "loss": math.log(value)} for step, value in enumerate(perplexities, 1)]
    spread = run_metrics(history, window=2, cv_threshold=0.4)["perplexity_cv"]
    assert spread["windows"] == 9 and spread["share_above"] == pytest.approx(2 / 9)
    assert spread["max"] == pytest.approx(0.5)


def test_the_metrics_of_an_empty_log_are_none():
    metrics = run_metrics([])
    assert metrics["last_loss"] is None and metrics["log_fit"] is None
    assert metrics["perplexity_cv"]["share_above"] is None


def test_only_what_is_logged_gets_a_panel(tmp_path):
    plain = size(plot_run_curves({"a": PLAIN}, tmp_path / "a.png"))
    more = [row | {"router_load_entropy": 1.0, "balance_loss": 1.0, "aux_loss": 1.0} for row in PLAIN]
    assert size(plot_run_curves({"a": PLAIN, "b": more}, tmp_path / "b.png"))[1] > plain[1]


def test_a_further_key_that_no_log_has_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\['lost'\]"):
        plot_run_curves({"a": PLAIN}, tmp_path / "a.png", further_keys=["lost"])


def test_a_log_of_something_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to draw.*'accuracy'"):
        plot_run_curves({"a": [{"step": 1, "accuracy": 0.5}]}, tmp_path / "a.png")


def test_there_is_a_panel_by_layer_for_each_run_that_logs_them(tmp_path):
    one = size(plot_layer_terms({"a": SUPERVISED, "plain": PLAIN}, tmp_path / "a.png"))
    two = size(plot_layer_terms({"a": SUPERVISED, "b": SUPERVISED}, tmp_path / "b.png"))
    assert two[1] == 2 * one[1]
    assert plot_layer_terms({"plain": PLAIN}, tmp_path / "c.png") is None and not (tmp_path / "c.png").exists()


def test_there_is_a_panel_by_thought_for_a_latent_run_only(tmp_path):
    assert plot_thoughts({"latent": LATENT, "plain": PLAIN}, tmp_path / "a.png") is not None
    assert plot_thoughts({"plain": PLAIN}, tmp_path / "b.png") is None


def test_what_thoughts_are_taught_is_drawn_and_is_no_perplexity(tmp_path):
    assert loss_key(LATENT) is None
    one = size(plot_run_curves({"latent": [{**row, "latent/kl": None} for row in LATENT]}, tmp_path / "a.png"))
    two = size(plot_run_curves({"latent": LATENT}, tmp_path / "b.png"))
    assert two[1] > one[1]  # four panels in two rows


def test_the_fit_is_drawn_where_there_are_points(tmp_path):
    assert size(plot_log_fit({"a": PLAIN, "short": PLAIN[:2]}, tmp_path / "a.png"))[0] > 500
    assert plot_log_fit({"short": PLAIN[:2]}, tmp_path / "b.png") is None


def test_a_log_of_rows_is_read_up_to_a_torn_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert load_log_history(tmp_path) == load_log_history(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]
