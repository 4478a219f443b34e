"""A difference over the seeds of two arms: what summaries, contrasts and findings have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_evidenceflow.evaluation.statistics import holm, paired_t_difference


@dataclass(kw_only=True)
class SeedDifference:
    """
    A difference of two arms, paired over the seeds that both have.

    Args:
        seeds (`list[int]`):
            The seeds.
        difference, low, high (`float`):
            Mean difference and the ends of its 95 % t interval; the ends are `nan` for a single seed.
        p_value (`float`, *optional*):
            Of the paired t-test.
        p_holm (`float`, *optional*):
            The same after Holm's correction over a family of differences.
    """

    seeds: list[int]
    difference: float
    low: float
    high: float
    p_value: float | None
    p_holm: float | None = None


def paired_over_seeds(values: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    """The fields of a [`SeedDifference`] of `values`, which hold (baseline, arm) by seed."""
    result = paired_t_difference(*zip(*values.values()))
    return {
        "seeds": list(values),
        "difference": result.value,
        "low": result.low,
        "high": result.high,
        "p_value": result.p_value,
    }


def correct_family(family: Sequence[SeedDifference]) -> None:
    """Set `p_holm` of the differences of one family."""
    for each, corrected in zip(family, holm([each.p_value for each in family])):
        each.p_holm = corrected
