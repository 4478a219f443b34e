"""The report of arms with one seed each: intervals and tests over the problems say nothing about other seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_evidenceflow.evaluation.statistics import holm, paired_difference, proportion_interval
from hf_evidenceflow.report.tables import markdown_table


ACCURACY, FORCED = "accuracy", "forced"

Scores = Mapping[str, Sequence[Mapping[str, float]]]  # by arm, a row for each problem: metric to 0 or 1


def problem_report(scores: Scores, studied: str, seed: int = 0) -> dict[str, Any]:
    """
    Accuracies, and differences of the studied arm.

    Args:
        scores (`Mapping`):
            By arm, rows of the same problems in the same order, with `accuracy` and further metrics.
        studied (`str`):
            The arm that is compared with all others, and with itself under its other metrics.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        `dict`: `problems`; `arms`, by arm and metric Wilson's interval; `contrasts`, with the paired bootstrap
        interval of `second - first` and McNemar's p-value before and after Holm's correction over all of them.
    """
    values = {
        arm: {name: [row[name] for row in rows] for name in rows[0] if name != "id"} for arm, rows in scores.items()
    }
    count = len(values[studied][ACCURACY])
    pairs = [(arm, metric, metric) for arm in scores if arm != studied for metric in (ACCURACY, FORCED)]
    pairs += [(studied, name, ACCURACY) for name in values[studied] if name not in (ACCURACY, FORCED)]
    contrasts = []
    for arm, first, second in pairs:
        difference = paired_difference(values[arm][first], values[studied][second], seed=seed)
        contrasts.append({"first": f"{arm}, {first}", "second": f"{studied}, {second}", **difference._asdict()})
    for contrast, adjusted in zip(contrasts, holm([contrast["p_value"] for contrast in contrasts])):
        contrast["p_holm"] = adjusted
    arms = {
        arm: {name: proportion_interval(int(sum(each)), count)._asdict() for name, each in metrics.items()}
        for arm, metrics in values.items()
    }
    return {"studied": studied, "problems": count, "arms": arms, "contrasts": contrasts}


def problem_report_markdown(content: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    metrics = list(content["arms"][content["studied"]])
    rows = [
        [arm, *(_interval(found[name]) if name in found else "" for name in metrics)]
        for arm, found in content["arms"].items()
    ]
    differences = [
        [
            f"{each['second']} - {each['first']}",
            f"{each['value']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]",
            f"{each['p_value']:.2g}",
            f"{each['p_holm']:.2g}",
        ]
        for each in content["contrasts"]
    ]
    return "\n".join(
        [
            f"{content['problems']} problems, one seed; 95 % intervals over the problems.",
            "",
            markdown_table(["arm", *metrics], rows),
            "",
            markdown_table(["difference", "", "p", "p (Holm)"], differences),
            "",
        ]
    )


def _interval(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
