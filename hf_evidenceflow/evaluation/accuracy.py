"""Metrics of graded completions, and the table that shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .statistics import Interval, mean_interval, pass_at_k, proportion_interval


def summarize_completions(
    rows: Sequence[Mapping[str, Any]],
    graders: Sequence[str],
    greedy: bool,
    seed: int = 0,
    pass_at: Sequence[int] | None = None,
) -> dict[str, Any]:
    """
    Sum up the graded completions of one decoding.

    Args:
        rows (`Sequence[Mapping]`):
            One row per completion, the same number for each problem, with `id` (problem), `scores` and `extracted`
            (each by grader), `completion_tokens`, `thinking_tokens`, `finished` and `seconds`.
        greedy (`bool`):
            Whether the completions are greedy, one per problem: their measure is called `"accuracy"`. Those of `n`
            sampled ones are `"avg@n"`, their mean accuracy, and `"pass@k"`, each with its interval over the problems.
        pass_at (`Sequence[int]`, *optional*, defaults to `(1, n)`):
            The k of pass@k.

    Returns:
        `dict[str, Any]`: `"graders"`, with the measures of each grader as `{"value", "low", "high"}` and its
        `"unparsable_share"`, and the lengths and the speed that all graders share.
    """
    if not rows:
        raise ValueError("There are no completions to sum up.")
    tokens = sum(row["completion_tokens"] for row in rows)
    metrics = {
        "graders": {},
        "completions": len(rows),
        "mean_completion_tokens": tokens / len(rows),
        "truncated_share": sum(not row["finished"] for row in rows) / len(rows),
        "tokens_per_second": tokens / max(sum(row["seconds"] for row in rows), 1e-9),
    }
    if rows[0]["thinking_tokens"] is not None:
        metrics["thinking_share"] = sum(row["thinking_tokens"] for row in rows) / max(tokens, 1)
    for grader in graders:
        outcomes: dict[Any, list[bool]] = {}
        for row in rows:
            outcomes.setdefault(row["id"], []).append(row["scores"][grader] == 1)
        measures = _pass_rates(list(outcomes.values()), greedy, seed, pass_at)
        metrics["graders"][grader] = {name: interval._asdict() for name, interval in measures.items()}
        unread = sum(row["extracted"][grader] is None for row in rows)
        metrics["graders"][grader]["unparsable_share"] = unread / len(rows)
    return metrics


def _pass_rates(outcomes: Sequence[Sequence[bool]], greedy: bool, seed: int, pass_at) -> dict[str, Interval]:
    n = len(outcomes[0])
    if any(len(right) != n for right in outcomes):
        raise ValueError(f"Each problem needs the same number of completions, got {sorted(set(map(len, outcomes)))}.")
    if n == 1:
        share = proportion_interval(sum(map(sum, outcomes)), len(outcomes))
        return {"accuracy": share} if greedy else {"avg@1": share, "pass@1": share}
    rates = {f"avg@{n}": [sum(right) / n for right in outcomes]}
    rates |= {f"pass@{k}": [pass_at_k(n, sum(right), k) for right in outcomes] for k in pass_at or (1, n)}
    return {name: mean_interval(each, seed=seed) for name, each in rates.items()}


def accuracy_table(metrics: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """
    Lay out the metrics of several decodings, or of several models, with all graders below each other.

    `metrics` are results of [`summarize_completions`] by the name to show. One row per grader and measure.
    """
    table = Table(title=title, caption="Lengths are in tokens; truncated: ran into the longest length allowed.")
    for column in ("", "grader", "measure"):
        table.add_column(column)
    for column in ("value", "95 % interval", "unparsable"):
        table.add_column(column, justify="right")
    for name, summary in metrics.items():
        label = name
        for grader, measures in summary["graders"].items():
            unread = f"{measures['unparsable_share']:.1%}"
            for measure, rate in measures.items():
                if measure != "unparsable_share":
                    interval = f"{rate['low']:.3f} to {rate['high']:.3f}"
                    table.add_row(label, grader, measure, f"{rate['value']:.3f}", interval, unread)
                    label = grader = unread = ""
        table.add_row("", "", "mean length", f"{summary['mean_completion_tokens']:.1f}", "", "")
        table.add_row("", "", "truncated", f"{summary['truncated_share']:.1%}", "", "")
        if "thinking_share" in summary:
            table.add_row("", "", "thinking", f"{summary['thinking_share']:.1%}", "", "")
        table.add_row("", "", "tokens/s", f"{summary['tokens_per_second']:.0f}", "", "", end_section=True)
    return table
