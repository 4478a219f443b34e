"""
Approach 2: at each compute budget, a parabola through the losses over log N, and a power law through the minima.

Source: Hoffmann et al. 2022 (2203.15556), section 3.2.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_evidenceflow.recipes.course.scaling_laws.fitting import Run
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    require_positive,
)


class IsoflopMinimum(NamedTuple):
    """
    The best model at one budget.

    Args:
        compute (`float`):
            Training FLOPs.
        parameters (`float`):
            Parameters at the minimum of the parabola.
        tokens (`float`):
            `compute / (6 * parameters)`.
        loss (`float`):
            Loss at the minimum.
        inside (`bool`):
            Whether the minimum lies between the smallest and the largest model that were run.
        coefficients (`tuple[float, float, float]`):
            Of the parabola in log N, highest power first.
    """

    compute: float
    parameters: float
    tokens: float
    loss: float
    inside: bool
    coefficients: tuple[float, float, float]


class PowerLaw(NamedTuple):
    """`factor * x ** exponent`."""

    factor: float
    exponent: float

    def __call__(self, x):
        return self.factor * x**self.exponent


def isoflop_minimum(compute: float, runs: Sequence[Run]) -> IsoflopMinimum:
    """
    The minimum of a parabola through the runs of one budget.

    Args:
        compute (`float`):
            The budget in FLOPs.
        runs (`Sequence[Run]`):
            At least 3 different sizes.

    Returns:
        [`IsoflopMinimum`]: the minimum.

    Raises:
        `ValueError`: if there are too few sizes, or the parabola has no minimum.
    """
    require_positive(compute=compute)
    sizes = sorted({run.parameters for run in runs})
    if len(sizes) < 3:
        raise ValueError(f"A parabola needs runs of at least 3 sizes at {compute:.3g} FLOPs, got {len(sizes)}.")
    log_n = np.log([run.parameters for run in runs])
    centre = log_n.mean()
    curvature, slope, height = np.polyfit(log_n - centre, [run.loss for run in runs], 2)
    if curvature <= 0:
        raise ValueError(
            f"The losses at {compute:.3g} FLOPs have no minimum over the size (curvature {curvature:.3g}). Add "
            "smaller and larger models."
        )
    best = centre - slope / (2 * curvature)
    parameters = float(np.exp(best))
    return IsoflopMinimum(
        compute=compute,
        parameters=parameters,
        tokens=compute / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters),
        loss=float(height - slope**2 / (4 * curvature)),
        inside=bool(sizes[0] <= parameters <= sizes[-1]),
        coefficients=(
            float(curvature),
            float(slope - 2 * curvature * centre),
            float(height - slope * centre + curvature * centre**2),
        ),
    )


def isoflop_minima(runs: Mapping[float, Sequence[Run]]) -> list[IsoflopMinimum]:
    """
    The minima of all budgets that show one.

    Args:
        runs (`Mapping[float, Sequence[Run]]`):
            Runs by their budget.

    Returns:
        `list[IsoflopMinimum]`: in the order of the budgets; those with fewer than 3 sizes or no minimum are left out.
    """
    minima = []
    for compute in sorted(runs):
        try:
            minima.append(isoflop_minimum(compute, runs[compute]))
        except ValueError as error:
            print(f"No minimum: {error}", flush=True)
    return minima


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """
    Least squares of a power law in logarithms.

    Args:
        x, y (`Sequence[float]`):
            Positive values, such as budgets and their optimal sizes.

    Returns:
        [`PowerLaw`]: the law.

    Raises:
        `ValueError`: if there are fewer than 2 different `x`, or a value is not positive.
    """
    require_positive(x=x, y=y)
    if len(set(x)) < 2:
        raise ValueError(f"A power law needs at least 2 different budgets, got {len(set(x))}.")
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(intercept)), float(exponent))
