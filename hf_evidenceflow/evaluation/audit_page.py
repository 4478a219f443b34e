"""A [`ThinkingAudit`] as one self-contained HTML page: the finding, a picture, the table, completions that changed."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write_text
from ..report.figures import COLOURS, finish_panel, new_figure, save_figure
from ..report.html import html_page, picture
from .thinking_audit import AUDIT_COLUMNS, TRAINED, ThinkingAudit


_KINDS = {
    TRAINED: "As trained.",
    "off": "Nothing is fed but the tokens.",
    "zero": "All states are 0.",
    "shuffle": "At each pass the state of another problem, each time of whichever is there.",
    "mean": "At each pass the mean of the states of all problems.",
    "swap": "All states of one other problem, from its first thought to its last.",
    "direction": "As swap, but at the norm of the problem's own state.",
}
_NOTES = (
    "All completions are greedy, of the same problems and with the same budget of tokens, thoughts included. An "
    "accuracy has Wilson's interval; a difference is paired by problem, with a bootstrap interval and McNemar's exact "
    "test, its p-value corrected over the interventions (Holm).",
    "Changed is the share of completions that are not word for word those of thinking as trained.",
    "States that do something change answers when they are exchanged for another problem's. Where only zero or off "
    "costs something, the model needs a state to be there, and what it holds does not matter.",
    "An audit of few problems finds large effects only: see how far the intervals reach.",
)


def plot_audit(audit: ThinkingAudit, path: str | os.PathLike) -> Path:
    """
    Draw the accuracies with their intervals, and what each intervention costs, as a PNG.

    Raises:
        `ImportError`: if matplotlib is not installed.
    """
    summary = audit.summary()
    kinds = list(summary)
    figure = new_figure((8.4, 1.3 + 0.42 * len(kinds)))
    accuracy, cost = figure.subplots(1, 2, sharey=True)
    trained = summary[TRAINED]["accuracy"]
    accuracy.axvspan(trained["low"], trained["high"], color=COLOURS[0], alpha=0.12, linewidth=0)
    cost.axvline(0, color="0.3", linewidth=1)
    for place, kind in enumerate(kinds):
        color = COLOURS[0] if kind == TRAINED else COLOURS[1] if audit.costs(kind) else "0.45"
        _interval(accuracy, place, summary[kind]["accuracy"], color)
        if kind != TRAINED:
            _interval(cost, place, summary[kind]["difference"], color)
    accuracy.set_yticks(range(len(kinds)), kinds)
    accuracy.set_ylim(len(kinds) - 0.5, -0.5)
    accuracy.set_xlim(-0.03, 1.03)
    accuracy.set(xlabel="accuracy", ylabel="thinking")
    cost.set_xlabel("accuracy as trained minus this")
    finish_panel(accuracy, "Accuracy")
    finish_panel(cost, "Cost; orange: p < .05 (Holm)")
    return save_figure(figure, path)


def _interval(panel, place: int, row: Mapping[str, Any], color: str) -> None:
    panel.hlines(place, row["low"], row["high"], color=color, linewidth=2)
    panel.plot(row["value"], place, "o", color=color, markersize=6)


def write_audit_page(
    audit: ThinkingAudit,
    path: str | os.PathLike,
    title: str,
    headline: str,
    rows: Sequence[Mapping[str, Any]] = (),
    examples: int = 3,
) -> Path:
    """
    Write the page, which needs no other file, and its picture next to it.

    Args:
        audit ([`ThinkingAudit`]):
            What to show.
        path (`str` or `os.PathLike`):
            HTML file to write; the picture is a PNG of the same name.
        title, headline (`str`):
            Above the page, and below that.
        rows (`Sequence[Mapping]`, *optional*):
            The problems of the audit, for examples of completions that changed.
        examples (`int`, *optional*, defaults to `3`):
            Their number, at most.

    Returns:
        `Path`: the path written.
    """
    drawn = plot_audit(audit, Path(path).with_suffix(".png"))
    page = html_page(
        "audit.html",
        title=title,
        headline=headline,
        finding=audit.finding(),
        accuracies=picture(drawn, "Accuracy and what each intervention costs, with 95 % intervals"),
        columns=AUDIT_COLUMNS,
        rows=audit.rows(),
        kinds=[(kind, _KINDS.get(kind, "")) for kind in audit.scores],
        examples=[_example(audit, rows, index) for index in _changed(audit)[:examples] if rows],
        notes=_NOTES,
    )
    atomic_write_text(path, page)
    return Path(path)


def _changed(audit: ThinkingAudit) -> list[int]:
    """Problems by the number of interventions that change the score and the text, most first; those with a change."""

    def changes(index):
        kinds = [kind for kind in audit.scores if kind != TRAINED]
        scores = sum(audit.scores[kind][index] != audit.scores[TRAINED][index] for kind in kinds)
        trained = audit.completions[TRAINED][index].text
        return scores, sum(audit.completions[kind][index].text != trained for kind in kinds)

    found = sorted(range(len(audit.scores[TRAINED])), key=changes, reverse=True)
    return [index for index in found if changes(index) != (0, 0)]


def _example(audit, rows, index):
    texts = [(kind, audit.completions[kind][index].text, audit.scores[kind][index]) for kind in audit.scores]
    return audit.completions[TRAINED][index].prompt, rows[index]["answer"], texts
