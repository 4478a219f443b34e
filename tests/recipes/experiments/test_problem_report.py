"""The report over problems: what is taken from what."""

import pytest

from hf_evidenceflow.recipes.experiments.problem_report import problem_report, problem_report_markdown


def rows(**metrics):
    return [dict(zip(metrics, values)) for values in zip(*metrics.values())]


SCORES = {
    "latent": rows(accuracy=[1, 1, 1, 1, 0], forced=[1, 1, 1, 1, 1], off=[0, 0, 1, 0, 0]),
    "discrete": rows(accuracy=[0, 1, 1, 0, 0], forced=[1, 1, 1, 0, 0]),
}


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("discrete, accuracy", "latent, accuracy", 0.4),
        ("discrete, forced", "latent, forced", 0.4),
        ("latent, off", "latent, accuracy", 0.6),
    ],
)
def test_each_metric_is_compared_with_its_own(first, second, value):
    contrasts = {(each["first"], each["second"]): each for each in problem_report(SCORES, "latent")["contrasts"]}
    assert len(contrasts) == 3
    assert contrasts[first, second]["value"] == pytest.approx(value)
    assert contrasts[first, second]["p_holm"] >= contrasts[first, second]["p_value"]


def test_arms_have_only_their_own_metrics():
    report = problem_report(SCORES, "latent")
    assert report["arms"]["latent"]["accuracy"]["value"] == 0.8
    assert set(report["arms"]["discrete"]) == {"accuracy", "forced"}
    assert "| discrete | 0.400" in problem_report_markdown(report)
