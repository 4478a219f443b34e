"""The picture of the recipe: isoFLOP curves of a known law and of the runs, the path of the optimum, and the fit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_evidenceflow.recipes.course.scaling_laws.fitting import Run
from hf_evidenceflow.recipes.course.scaling_laws.isoflop import IsoflopMinimum
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    ParametricLoss,
)
from hf_evidenceflow.report.figures import COLOURS, new_figure, save_figure


def plot_scaling(
    presets: Mapping[str, ParametricLoss],
    budgets: Sequence[float],
    law: ParametricLoss,
    runs: Mapping[float, Sequence[Run]],
    minima: Sequence[IsoflopMinimum],
    held_out: Run,
    path: str | os.PathLike,
) -> Path:
    """
    Draw the four panels.

    Args:
        presets (`Mapping[str, ParametricLoss]`):
            Known laws by their name; the isoFLOP curves are the first one's.
        budgets (`Sequence[float]`):
            FLOPs of the known laws' curves.
        law ([`ParametricLoss`]):
            The fit.
        runs (`Mapping[float, Sequence[Run]]`):
            The measured runs by their budget.
        minima (`Sequence[IsoflopMinimum]`):
            Minima of the parabolas through them.
        held_out ([`Run`]):
            The larger run that the fit has not seen.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((10.5, 7.6))
    panels = figure.subplots(2, 2)
    _known_isoflops(panels[0, 0], *next(iter(presets.items())), budgets)
    _optimal_sizes(panels[0, 1], presets, budgets)
    _measured_isoflops(panels[1, 0], law, runs, minima)
    _predictions(panels[1, 1], law, runs, held_out)
    for panel in panels.flat:
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def _known_isoflops(panel, name: str, law: ParametricLoss, budgets: Sequence[float]) -> None:
    for index, compute in enumerate(budgets):
        best = law.optimal(compute)
        sizes = np.geomspace(best.parameters / 30, best.parameters * 30, 200)
        losses = law(sizes, compute / (FLOPS_PER_PARAMETER_AND_TOKEN * sizes))
        colour = COLOURS[index % len(COLOURS)]
        panel.plot(sizes, losses, color=colour, label=f"{compute:.0e} FLOPs")
        panel.plot(best.parameters, best.loss, "o", color=colour, markersize=5)
    _label(panel, f"IsoFLOP curves, {name}'s constants", "parameters N", "loss (nats a token)")
    panel.set_xscale("log")
    panel.legend(frameon=False, fontsize=8)


def _optimal_sizes(panel, presets: Mapping[str, ParametricLoss], budgets: Sequence[float]) -> None:
    compute = np.geomspace(min(budgets), max(budgets), 50)
    for index, (name, law) in enumerate(presets.items()):
        best = [law.optimal(value) for value in compute]
        colour = COLOURS[index % len(COLOURS)]
        label = f"{name}: N* ~ C^{law.parameter_exponent:.2f}"
        panel.plot(compute, [each.parameters for each in best], color=colour, label=label)
        panel.plot(compute, [each.tokens for each in best], "--", color=colour)
    _label(panel, "Best use of a budget (solid: N*, dashed: D*)", "FLOPs", "parameters, tokens")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.legend(frameon=False, fontsize=8)


def _measured_isoflops(
    panel, law: ParametricLoss, runs: Mapping[float, Sequence[Run]], minima: Sequence[IsoflopMinimum]
) -> None:
    by_budget = {minimum.compute: minimum for minimum in minima}
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
    _label(panel, "Runs made here (solid: fit, dotted: parabola)", "parameters N", "held-out loss (nats a token)")
    panel.set_xscale("log")
    panel.legend(frameon=False, fontsize=8)


def _predictions(panel, law: ParametricLoss, runs: Mapping[float, Sequence[Run]], held_out: Run) -> None:
    for index, members in enumerate(runs[compute] for compute in sorted(runs)):
        predicted = [law(run.parameters, run.tokens) for run in members]
        colour = COLOURS[index % len(COLOURS)]
        panel.plot(predicted, [run.loss for run in members], "o", color=colour, markersize=5)
    expected = law(held_out.parameters, held_out.tokens)
    panel.plot(expected, held_out.loss, "k*", markersize=13, label="larger run, not in the fit")
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], color="grey", linewidth=0.8, zorder=0)
    _label(panel, "Fit against measurement", "predicted loss", "measured loss")
    panel.legend(frameon=False, fontsize=8)


def _label(panel, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=11, loc="left", fontweight="bold")
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)
