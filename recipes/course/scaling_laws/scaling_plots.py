"""The picture of the recipe: isoFLOP curves of a known law and of the runs, the path of the optimum, and the fit."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_evidenceflow.recipes.course.scaling_laws import kaplan
from hf_evidenceflow.recipes.course.scaling_laws.fitting import Run
from hf_evidenceflow.recipes.course.scaling_laws.isoflop import IsoflopMinimum
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    PRESETS,
    ParametricLoss,
)
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


NATS = "loss (nats per token)"
# Parameters and training tokens of large models in table 1 of Hoffmann et al., and where the name is written
KNOWN_MODELS = {
    "LaMDA": (137e9, 168e9, (-5, -4), "right"),
    "GPT-3": (175e9, 300e9, (-5, 2), "right"),
    "Gopher": (280e9, 300e9, (0, 5), "left"),
    "MT-NLG": (530e9, 270e9, (5, 1), "left"),
    "Chinchilla": (70e9, 1.4e12, (5, -7), "left"),
}


class Measured(NamedTuple):
    """
    What was measured here.

    Args:
        law ([`ParametricLoss`]):
            The fit.
        runs (`Mapping[float, Sequence[Run]]`):
            The runs by their budget.
        minima (`Sequence[IsoflopMinimum]`):
            Minima of the parabolas through them.
        held_out ([`Run`]):
            The larger run that the fit has not seen.
    """

    law: ParametricLoss
    runs: Mapping[float, Sequence[Run]]
    minima: Sequence[IsoflopMinimum]
    held_out: Run


def scaling_rows(preset: str, budgets: Sequence[float], measured: Measured | None) -> dict[str, dict]:
    """
    What the picture is drawn from: one run.

    Args:
        preset (`str`):
            The known law whose isoFLOP curves are drawn; empty: no panels of known laws.
        budgets (`Sequence[float]`):
            FLOPs of the known laws' curves.
        measured ([`Measured`], *optional*):
            The runs made here.

    Returns:
        `dict[str, dict]`: once of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    once = {"preset": preset, "budgets": list(budgets), "measured": None}
    if measured is not None:
        minima = [minimum._asdict() for minimum in measured.minima]
        once["measured"] = {"law": asdict(measured.law), "runs": measured.runs, "minima": minima}
        once["measured"]["held_out"] = measured.held_out
    return {"once": once}


def plot_scaling_rows(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw [`scaling_rows`] into a PNG."""
    preset, found = rows.once["preset"], rows.once["measured"]
    presets = {preset: PRESETS[preset], **PRESETS} if preset else {}
    measured = None
    if found is not None:
        runs = {float(budget): [Run(*run) for run in members] for budget, members in found["runs"].items()}
        minima = [IsoflopMinimum(**minimum) for minimum in found["minima"]]
        measured = Measured(ParametricLoss(**found["law"]), runs, minima, Run(*found["held_out"]))
    return plot_scaling(presets, rows.once["budgets"], measured, path)


def plot_scaling(
    presets: Mapping[str, ParametricLoss],
    budgets: Sequence[float],
    measured: Measured | None,
    path: str | os.PathLike,
) -> Path:
    """
    Draw what the published laws say, Kaplan et al.'s next to Chinchilla's in each panel, and what was measured here.

    Args:
        presets (`Mapping[str, ParametricLoss]`):
            Known laws by their name; the isoFLOP curves are the first one's. Empty: no such panels.
        budgets (`Sequence[float]`):
            FLOPs of the known laws' curves.
        measured ([`Measured`], *optional*):
            The runs made here; `None`: no such panels.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    drawn: list[Callable] = []
    if presets:
        drawn += [partial(draw, presets=presets, budgets=budgets) for draw in PUBLISHED_PANELS]
    if measured is not None:
        drawn += [partial(draw, measured=measured) for draw in (_measured_isoflops, _predictions)]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = new_figure((4.5 * columns, 3.7 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, draw in zip(panels, drawn):
        draw(panel)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    return save_figure(figure, path)


def _compared(panel, places, kaplan_values, presets, of_law, title: str, x: str, y: str) -> None:
    """A curve of Kaplan et al. and one of each of Chinchilla's laws, on logarithmic axes."""
    panel.plot(places, kaplan_values, color=COLOURS[1], linestyle="--", label="Kaplan et al.")
    for (name, law), color in zip(presets.items(), (COLOURS[0], COLOURS[2])):
        panel.plot(
            places,
            of_law(law),
            color=color,
            linestyle="-" if color == COLOURS[0] else "-.",
            label=f"{name.capitalize()} et al.",
        )
    panel.set_xscale("log")
    panel.legend(frameon=False, fontsize=8)
    finish_panel(panel, title, x, y)


def _loss_of_size(panel, presets, budgets) -> None:
    sizes = np.geomspace(1e7, 1e12, 50)
    title = "Loss over size, without end of data"
    losses = kaplan.loss_of_size(sizes)
    _compared(panel, sizes, losses, presets, lambda law: law(sizes, 1e30), title, "parameters N", NATS)


def _loss_of_data(panel, presets, budgets) -> None:
    tokens = np.geomspace(1e8, 1e13, 50)
    title = "Loss over data, without end of size"
    losses = kaplan.loss_of_data(tokens)
    _compared(panel, tokens, losses, presets, lambda law: law(1e30, tokens), title, "tokens D", NATS)


def _loss_of_compute(panel, presets, budgets) -> None:
    compute = np.geomspace(min(budgets), max(budgets), 50)
    title = "Loss over compute, spent best"
    losses = kaplan.loss_of_compute(compute)

    def best(law):
        return [law.optimal(value).loss for value in compute]

    _compared(panel, compute, losses, presets, best, title, "FLOPs", NATS)


def _optimal_sizes(panel, presets, budgets) -> None:
    _optimum(panel, presets, budgets, 0, "parameters", "Best size for a budget", "parameters N*")


def _optimal_tokens(panel, presets, budgets) -> None:
    _optimum(panel, presets, budgets, 1, "tokens", "Best number of tokens for a budget", "tokens D*")


def _optimum(panel, presets, budgets, place, name, title, label) -> None:
    compute = np.geomspace(min(budgets), max(budgets), 50)

    def best(law):
        return [getattr(law.optimal(value), name) for value in compute]

    _compared(panel, compute, kaplan.optimal(compute)[place], presets, best, title, "FLOPs", label)
    panel.set_yscale("log")


def _frontier(panel, presets, budgets) -> None:
    compute = np.geomspace(min(budgets), max(budgets), 50)
    sizes, tokens = kaplan.optimal(compute)
    panel.plot(sizes, tokens, color=COLOURS[1], linestyle="--", label="Kaplan et al.")
    for (name, law), color in zip(presets.items(), (COLOURS[0], COLOURS[2])):
        best = [law.optimal(value) for value in compute]
        panel.plot(
            [each.parameters for each in best],
            [each.tokens for each in best],
            color=color,
            linestyle="-" if color == COLOURS[0] else "-.",
            label=f"{name.capitalize()} et al.",
        )
    for name, (size, seen, offset, side) in KNOWN_MODELS.items():
        panel.plot(size, seen, "o", color="0.25", markersize=4)
        panel.annotate(name, (size, seen), xytext=offset, textcoords="offset points", fontsize=7, ha=side)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.legend(frameon=False, fontsize=8, loc="lower right")
    finish_panel(panel, "Best use of a budget, and known models", "parameters N", "tokens D")


def _known_isoflops(panel, presets, budgets) -> None:
    name, law = next(iter(presets.items()))
    for index, compute in enumerate(budgets):
        best = law.optimal(compute)
        sizes = np.geomspace(best.parameters / 30, best.parameters * 30, 200)
        losses = law(sizes, compute / (FLOPS_PER_PARAMETER_AND_TOKEN * sizes))
        colour = COLOURS[index % len(COLOURS)]
        panel.plot(sizes, losses, color=colour, label=f"{compute:.3g} FLOPs")
        panel.plot(best.parameters, best.loss, "o", color=colour, markersize=5)
    finish_panel(panel, f"IsoFLOP curves, {name.capitalize()} et al.", "parameters N", NATS)
    panel.set_xscale("log")
    panel.legend(frameon=False, fontsize=8)


def _measured_isoflops(panel, measured: Measured) -> None:
    from matplotlib.ticker import LogLocator

    law, runs = measured.law, measured.runs
    by_budget = {minimum.compute: minimum for minimum in measured.minima}
    for index, (compute, members) in enumerate(sorted(runs.items())):
        colour = COLOURS[index % len(COLOURS)]
        sizes = np.array([run.parameters for run in members])
        panel.plot(sizes, [run.loss for run in members], "o", color=colour, markersize=5, label=f"{compute:.1e} FLOPs")
        line = np.geomspace(sizes.min(), sizes.max(), 100)
        panel.plot(line, law(line, compute / (FLOPS_PER_PARAMETER_AND_TOKEN * line)), color=colour)
        minimum = by_budget.get(compute)
        if minimum is not None:
            panel.plot(line, np.polyval(minimum.coefficients, np.log(line)), ":", color=colour)
            if minimum.inside:
                panel.plot(minimum.parameters, minimum.loss, "*", color=colour, markersize=11)
    panel.set_xscale("log")
    # Sizes lie within less than two decades, where matplotlib's own labels stand on each other
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter("{x:.0e}")
    panel.xaxis.set_minor_formatter("")
    finish_panel(panel, "Runs made here (solid: fit, dotted: parabola)", "parameters N", f"held-out {NATS}")
    panel.legend(frameon=False, fontsize=8)


def _predictions(panel, measured: Measured) -> None:
    law, runs, held_out = measured.law, measured.runs, measured.held_out
    for index, members in enumerate(runs[compute] for compute in sorted(runs)):
        predicted = [law(run.parameters, run.tokens) for run in members]
        colour = COLOURS[index % len(COLOURS)]
        panel.plot(predicted, [run.loss for run in members], "o", color=colour, markersize=5)
    expected = law(held_out.parameters, held_out.tokens)
    panel.plot(expected, held_out.loss, "k*", markersize=13, label="larger run, not in the fit")
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
    finish_panel(panel, "Fit against measurement", "predicted loss", "measured loss")
    panel.legend(frameon=False, fontsize=8)


PUBLISHED_PANELS = (
    *(_loss_of_size, _loss_of_data, _loss_of_compute),
    *(_optimal_sizes, _optimal_tokens, _frontier, _known_isoflops),
)
