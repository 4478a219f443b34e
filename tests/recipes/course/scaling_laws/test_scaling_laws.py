"""The parametric loss and its optimum, the fits, Kaplan's formulas, the measured runs, and the recipe."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from repository import RECIPES
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.recipes.course.scaling_laws import kaplan, measured_runs
from hf_evidenceflow.recipes.course.scaling_laws.fitting import (
    Run,
    _objective,
    bootstrap_fits,
    fit_parametric_loss,
    percentile_interval,
)
from hf_evidenceflow.recipes.course.scaling_laws.isoflop import fit_power_law, isoflop_minima, isoflop_minimum
from hf_evidenceflow.recipes.course.scaling_laws.measured_runs import (
    RunsFile,
    count_parameters,
    plan_grid,
    small_llama,
)
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import BESIROGLU, HOFFMANN, ParametricLoss
from hf_evidenceflow.recipes.course.scaling_laws.scaling_plots import (
    Measured,
    plot_scaling,
    plot_scaling_rows,
    scaling_rows,
)
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows


RECIPE = RECIPES / "course" / "scaling_laws" / "run.py"
# Exponents far apart, so that one taken for the other shows
UNEVEN = ParametricLoss(E=0.8, A=3.0, B=60.0, alpha=0.2, beta=0.45)
LAWS = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU, "uneven": UNEVEN}


def runs_of(law, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Run(size, tokens, law(size, tokens) * math.exp(noise * rng.normal()))
        for size in np.geomspace(1e7, 1e10, 6)
        for tokens in np.geomspace(3e8, 3e11, 5)
    ]


# The law


def test_the_loss_is_the_sum_of_its_three_terms():
    assert ParametricLoss(1.5, 8.0, 27.0, 0.5, 1 / 3)(16.0, 27.0) == pytest.approx(1.5 + 8 / 4 + 27 / 3)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("compute", [1e18, 3e21])
def test_the_optimum_spends_the_budget_and_nothing_beside_it_is_better(law, compute):
    best = law.optimal(compute)
    assert 6 * best.parameters * best.tokens == pytest.approx(compute, rel=1e-12)

    def loss(log_n):
        return law(math.exp(log_n), compute / (6 * math.exp(log_n)))

    found = minimize_scalar(loss, bounds=(0, math.log(compute)), method="bounded", options={"xatol": 1e-9})
    assert math.exp(found.x) == pytest.approx(best.parameters, rel=1e-4)
    assert best.loss == pytest.approx(found.fun, rel=1e-10)
    here, step = math.log(best.parameters), 1e-3
    slope = (loss(here + step) - loss(here - step)) / (2 * step)
    # Beside the optimum the slope is of the order of the terms themselves
    assert abs(slope) < 1e-5 * (best.loss - law.E)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_cheapest_way_to_a_loss_is_the_optimum_of_its_budget(law):
    for loss in (law.E + 0.05, law.E + 0.7):
        cheapest = law.cheapest(loss)
        assert law(cheapest.parameters, cheapest.tokens) == pytest.approx(loss, rel=1e-12)
        assert law.optimal(cheapest.compute) == pytest.approx(cheapest, rel=1e-9)


def test_a_budget_comes_back_from_the_loss_that_it_reaches():
    assert UNEVEN.cheapest(UNEVEN.optimal(7e20).loss).compute == pytest.approx(7e20, rel=1e-6)


def test_the_parameters_grow_with_the_share_that_beta_has_of_both_exponents():
    for law in LAWS.values():
        ratio = law.optimal(1e22).parameters / law.optimal(1e20).parameters
        assert ratio == pytest.approx(100 ** (law.beta / (law.alpha + law.beta)))
    # Besiroglu et al. state 0.513 for their constants
    assert BESIROGLU.parameter_exponent == pytest.approx(0.513, abs=5e-4)


def test_a_loss_at_or_below_the_irreducible_one_is_refused_with_both_numbers():
    for loss in (1.69, 1.2, math.nan):
        with pytest.raises(ValueError, match=f"{loss}.*1.69"):
            HOFFMANN.cheapest(loss)


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf, math.nan])
def test_what_is_not_positive_is_refused_by_name(value):
    with pytest.raises(ValueError, match="compute"):
        HOFFMANN.optimal(value)
    with pytest.raises(ValueError, match="tokens"):
        HOFFMANN(1e6, value)
    with pytest.raises(ValueError, match="beta"):
        ParametricLoss(1.0, 2.0, 3.0, 0.4, value)


# Kaplan's formulas


def test_kaplans_joint_law_becomes_the_separate_ones_at_its_ends():
    tokens = np.array([1e6, 3e8])
    of_data = kaplan.loss_of_data(tokens, critical_tokens=1.8e13, exponent=0.103)
    np.testing.assert_allclose(kaplan.loss_of_size_and_data(np.inf, tokens), of_data, rtol=1e-12)
    of_size = kaplan.loss_of_size(2e7, critical_parameters=6.4e13, exponent=0.076)
    assert kaplan.loss_of_size_and_data(2e7, np.inf) == pytest.approx(of_size)
    assert kaplan.loss_of_size_and_data(2e7, 1e6) > max(of_size, of_data[0])


def test_kaplans_laws_are_power_laws_with_his_exponents():
    assert kaplan.loss_of_size(8.8e13) == kaplan.loss_of_data(5.4e13) == 1
    assert kaplan.loss_of_size(1e6) / kaplan.loss_of_size(1e8) == pytest.approx(100**0.076)
    assert kaplan.loss_of_data(1e7) / kaplan.loss_of_data(1e8) == pytest.approx(10**0.095)


# Fits


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_fit_finds_the_constants_of_runs_without_noise(law):
    fit = fit_parametric_loss(runs_of(law))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit, name) == pytest.approx(getattr(law, name), rel=1e-2), name


def test_an_outlier_hardly_moves_the_fit():
    runs = runs_of(HOFFMANN)
    runs[7] = runs[7]._replace(loss=runs[7].loss * 1.5)
    fit = fit_parametric_loss(runs)
    # Least squares puts alpha off by more than a tenth here
    assert fit.alpha == pytest.approx(HOFFMANN.alpha, rel=0.02)
    assert pytest.approx(HOFFMANN.E, rel=0.02) == fit.E


@pytest.mark.slow
def test_the_bootstrap_interval_of_noisy_runs_holds_the_truth_and_has_a_width():
    runs = runs_of(BESIROGLU, noise=0.005)
    fit = fit_parametric_loss(runs)
    fits = bootstrap_fits(runs, fit, resamples=40)
    for name in ("E", "alpha", "beta", "parameter_exponent"):
        value, low, high = percentile_interval(getattr(fit, name), [getattr(each, name) for each in fits], 0.99)
        assert low < getattr(BESIROGLU, name) < high, name
        assert 0.005 * value < high - low < 0.5 * value, name


def test_the_same_seed_draws_the_same_resamples():
    runs = runs_of(UNEVEN, noise=0.01)
    first, again, other = (bootstrap_fits(runs, UNEVEN, 2, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_the_objective_is_hubers_with_its_gradient():
    rng = np.random.default_rng(0)
    log_n, log_d, log_loss = rng.normal(size=7), rng.normal(size=7), 0.4 + 0.3 * rng.normal(size=7)
    point = np.array([0.3, -0.2, 0.1, 0.5, 0.7])

    def slow(point):
        a, b, e, alpha, beta = point
        total = 0.0
        for n, d, loss in zip(log_n, log_d, log_loss):
            error = abs(logsumexp([a - alpha * n, b - beta * d, e]) - loss)
            total += error**2 / 2 if error <= 1e-3 else 1e-3 * (error - 5e-4)
        return total

    value, gradient = _objective(point, log_n, log_d, log_loss)
    assert value == pytest.approx(slow(point), rel=1e-12)
    numeric = [(slow(point + step) - slow(point - step)) / 2e-6 for step in 1e-6 * np.eye(5)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4)


def test_too_few_or_too_like_runs_are_refused():
    runs = runs_of(HOFFMANN)
    for some in ([], runs[:5], [run for run in runs if run.parameters < 1e8], runs[:1] * 30):
        with pytest.raises(ValueError, match="at least 6 different runs"):
            fit_parametric_loss(some)
    with pytest.raises(ValueError, match="loss"):
        fit_parametric_loss([*runs, Run(1e6, 1e6, -1.0)])


# IsoFLOP


def isoflop_runs(law, compute, width=2.0, points=7):
    centre = law.optimal(compute).parameters
    sizes = centre * np.geomspace(1 / width, width, points)
    return [Run(size, compute / (6 * size), law(size, compute / (6 * size))) for size in sizes]


def test_isoflop_minima_and_their_power_law_agree_with_the_closed_form():
    budgets = (1e19, 1e20, 1e21, 1e22)
    minima = isoflop_minima({compute: isoflop_runs(HOFFMANN, compute) for compute in budgets})
    for minimum in minima:
        best = HOFFMANN.optimal(minimum.compute)
        # The curve is no parabola: over a factor of 2 to each side its minimum moves by about a percent
        assert minimum.parameters == pytest.approx(best.parameters, rel=0.02)
        assert minimum.loss == pytest.approx(best.loss, rel=1e-3)
        assert 6 * minimum.parameters * minimum.tokens == pytest.approx(minimum.compute)
        drawn = np.polyval(minimum.coefficients, math.log(minimum.parameters))
        assert drawn == pytest.approx(minimum.loss, rel=1e-8)
    power = fit_power_law([m.compute for m in minima], [m.parameters for m in minima])
    assert power.exponent == pytest.approx(HOFFMANN.parameter_exponent, abs=1e-3)
    assert power(1e20) == pytest.approx(minima[1].parameters, rel=1e-3)


def test_a_minimum_beyond_the_models_is_marked():
    runs = isoflop_runs(HOFFMANN, 1e20)
    assert isoflop_minimum(1e20, runs).inside
    assert not isoflop_minimum(1e20, runs[:3]).inside


def test_budgets_without_a_minimum_are_refused_or_left_out():
    falling = [Run(size, 1e9 / size, loss) for size, loss in ((10.0, 3.0), (100.0, 2.9), (1000.0, 2.0))]
    with pytest.raises(ValueError, match="no minimum"):
        isoflop_minimum(6e9, falling)
    with pytest.raises(ValueError, match="3 sizes.*got 2"):
        isoflop_minimum(6e9, falling[:2])
    minima = isoflop_minima({6e9: falling, 1e20: isoflop_runs(HOFFMANN, 1e20)})
    assert [minimum.compute for minimum in minima] == [1e20]
    with pytest.raises(ValueError, match="2 different budgets"):
        fit_power_law([1e9, 1e9], [1.0, 2.0])


# Runs


@pytest.fixture(scope="module")
def text_tokenizer():
    return train_text_tokenizer(["one small text for all"], vocab_size=258)


def test_parameters_are_counted_once_and_without_the_embeddings(text_tokenizer):
    model = small_llama(16, 3, 32, text_tokenizer)
    total, outside = count_parameters(model)
    assert total - outside == len(text_tokenizer) * 16
    layer = 4 * 16 * 16 + 3 * 16 * model.config.intermediate_size + 2 * 16
    assert outside == 3 * layer + 16


def test_a_width_that_is_no_multiple_of_a_head_is_refused(text_tokenizer):
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        small_llama(12, 1, 32, text_tokenizer)


def test_a_grid_keeps_runs_of_the_budget_within_one_pass():
    grid = plan_grid({8: 1000, 16: 3000, 24: 50_000}, [6e8, 6e7], batch_tokens=50, most_tokens=60_000, fewest_steps=9)
    assert grid == [(6e7, 8, 10_000), (6e7, 16, 3350), (6e8, 16, 33_350), (6e8, 24, 2000)]
    with pytest.raises(ValueError, match="Change `budgets`"):
        plan_grid({8: 1000}, [6e9], batch_tokens=50, most_tokens=60_000)


def test_a_finished_run_is_found_by_its_settings_only(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    file.add({"width": 8, "tokens": 64}, {"loss": 2.5})
    file.add({"width": 8, "tokens": 128}, {"loss": 2.25})
    again = RunsFile(tmp_path / "runs.jsonl")
    assert again.find({"tokens": 128, "width": 8}) == {"loss": 2.25}
    assert again.find({"width": 16, "tokens": 64}) is None
    assert RunsFile(tmp_path / "runs.jsonl", resume=False).find({"width": 8, "tokens": 64}) is None


def test_a_model_is_taken_for_saved_under_its_own_settings_only(tmp_path):
    file = RunsFile(tmp_path / "runs.jsonl")
    (tmp_path / "model").mkdir()
    assert not file.is_saved({"width": 8}, tmp_path / "model")
    for width in (8, 16, 8):
        file.add({"width": width}, {"loss": 2.0}, tmp_path / "model")
    assert file.is_saved({"width": 8}, tmp_path / "model") and not file.is_saved({"width": 16}, tmp_path / "model")
    assert len(file.path.read_text().splitlines()) == 2


def test_a_foreign_file_of_runs_is_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"loss": 2}\n')
    with pytest.raises(ValueError, match="resume false"):
        RunsFile(tmp_path / "runs.jsonl")


def test_a_run_takes_the_first_rows_once_and_ends_with_a_learning_rate_of_zero(text_tokenizer, monkeypatch):
    seen, rates = [], []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            seen.append(index)
            ids = torch.full((8,), 65 + index % 3)
            return {"input_ids": ids, "labels": ids}

    class Watched(measured_runs.Trainer):
        def evaluate(self, *args, **kwargs):
            rates.append(self.lr_scheduler.get_last_lr()[0])
            trained.extend(seen)
            return super().evaluate(*args, **kwargs)

    trained = []
    monkeypatch.setattr(measured_runs, "Trainer", Watched)
    settings = {"width": 8, "layers": 1, "tokens": 245, "block_size": 8, "batch_size": 3}
    settings |= {"learning_rate": 0.01, "seed": 0}
    result = measured_runs.train_run(settings, Rows(), Rows(), text_tokenizer)
    assert sorted(trained) == list(range(30))  # 10 whole batches of 3 rows
    assert result["tokens"] == 240 and rates == [0.0]
    assert 0 < result["loss"] < math.log(258)
    with pytest.raises(ValueError, match="one pass over 40 rows"):
        measured_runs.train_run(settings | {"tokens": 1000}, Rows(), Rows(), text_tokenizer)


# Picture


def test_kaplans_best_use_of_a_pf_day_is_that_of_his_table():
    assert kaplan.optimal(8.64e19) == pytest.approx((1.3e9, 2e10))
    assert kaplan.loss_of_compute(3.1e8 * 8.64e19) == pytest.approx(1)


@pytest.mark.slow
def test_the_picture_has_kaplan_and_chinchilla_in_each_panel_and_the_runs(tmp_path):
    presets, budgets = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU}, [1e19, 1e21, 1e23]

    def run(size, budget):
        return Run(size, budget / (6 * size), float(HOFFMANN(size, budget / (6 * size))))

    runs = {budget: [run(size, budget) for size in (2e8, 1e9, 5e9)] for budget in budgets}
    measured = Measured(HOFFMANN, runs, isoflop_minima(runs), Run(1e9, 1e11, 2.3))
    assert plot_scaling(presets, budgets, measured, tmp_path / "both.png").exists()
    rows = PictureRows("scaling_laws", [0], {}, **scaling_rows("hoffmann", budgets, measured))
    assert plot_scaling_rows(rows, tmp_path / "again.png").exists()


# Recipe


@pytest.mark.slow
def test_the_recipe_fits_predicts_and_resumes(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("scaling_laws", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    command = [
        *("--output_dir", str(tmp_path), "--max_documents", "600", "--vocab_size", "300", "--resamples", "5"),
        *("--widths", "16", "24", "32", "--layers", "1", "--block_size", "32", "--batch_size", "2"),
        *("--budgets", "1.5e8", "2e8", "2.5e8", "--held_out_budget", "4e8", "--fewest_steps", "20"),
    ]
    metrics = recipe.main(command)
    assert metrics["trained"] == metrics["runs"] + 1 >= 7
    assert metrics["held_out"]["loss"] < math.log(300)
    assert metrics["law"]["alpha"] > 0 and metrics["law"]["beta"] > 0
    for file in ("scaling_laws.md", "scaling_laws.png", "law.json", "model/model.safetensors", "metrics.json"):
        assert (tmp_path / file).exists(), file
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == metrics["trained"]
    again = recipe.main(command)
    assert again["trained"] == 0 and again["law"] == metrics["law"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"


def test_too_few_runs_are_refused_before_any_is_trained(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling_laws", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(recipe, "train_run", lambda *args: pytest.fail("a run was trained"))
    command = ["--output_dir", str(tmp_path), "--max_documents", "60", "--vocab_size", "300", "--fewest_steps", "5"]
    with pytest.raises(ValueError, match="at least 6 different runs .* got 2 different runs"):
        recipe.main([*command, "--widths", "16", "24", "--layers", "1", "--budgets", "1.5e8"])
