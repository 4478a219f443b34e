"""The grid of an experiment, multiplied out: variants (cells), and their runs with seeds and tuned values."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


_RECIPES = Path(__file__).parents[1]


def packaged_file(path: str | os.PathLike) -> Path:
    """The path; where there is no such file, `recipes/...` is that of the installed package."""
    given = Path(path)
    installed = _RECIPES.joinpath(*given.parts[1:])
    return installed if not given.exists() and given.parts[:1] == ("recipes",) and installed.is_file() else given


@dataclass(frozen=True)
class Tune:
    """
    How one option is chosen before the seeds are run.

    Args:
        option (`str`):
            Recipe option that is tuned.
        values (`list`):
            Values to try, at least two.
        metric (`str`):
            Metric of `run.json` that decides.
        mode (`str`, *optional*, defaults to `"min"`):
            `"min"` or `"max"`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the tuning runs. With the chosen value it is the seed's final run too.
        options (`dict`, *optional*):
            Options of the tuning runs, such as fewer steps. None of them is a final run then.
        per (`list[str]`, *optional*):
            Axes each of whose level combinations gets a value of its own; the metric is averaged over the others. If
            not given, all axes: each cell its own value.
    """

    option: str
    values: list
    metric: str
    mode: str = "min"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    per: list[str] | None = None


@dataclass(frozen=True)
class Cell:
    """One variant: a level of each axis."""

    levels: dict[str, str]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return ",".join(f"{axis}={level}" for axis, level in self.levels.items())


@dataclass(frozen=True)
class RunSpec:
    """One run: a cell with a seed and, where the grid tunes, a value."""

    cell: Cell
    seed: int
    value: Any
    id: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """
    A checked grid. Made by [`~hf_evidenceflow.recipes.experiments.grid_file.load_grid`], which explains the fields.

    Attributes:
        cells (`list[Cell]`):
            Variants, in the order of the product of the axes.
    """

    name: str
    recipe: str
    axes: dict[str, dict[str, dict]]
    seeds: list[int]
    metrics: list[str]
    overrides: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    tune: Tune | None = None
    exclude: list[dict] = field(default_factory=list)
    only: list[dict] = field(default_factory=list)
    baseline: dict[str, str] | None = None
    relative_cost: dict[str, float] | None = None
    trackio: bool = False
    slurm: dict[str, Any] | None = None
    base_options: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        cells = []
        for combination in itertools.product(*self.axes.values()):
            levels = dict(zip(self.axes, combination))
            if self.only and not any(_matches(levels, pattern) for pattern in self.only):
                continue
            if any(_matches(levels, pattern) for pattern in self.exclude):
                continue
            options = merge_options(self.base_options, self.overrides)
            for axis, level in levels.items():
                options = merge_options(options, self.axes[axis][level])
            cells.append(Cell(levels, options))
        return cells

    def run(self, cell: Cell, seed: int, value: Any = None, tuning: bool = False) -> RunSpec:
        """The run of a cell with one seed and one value of the tuned option (`None` while that is open)."""
        options, parts = dict(cell.options), [cell.name] if cell.levels else []
        if self.tune is not None:
            options[self.tune.option] = value
            parts.append(f"{self.tune.option}={'?' if value is None else value}")
            if tuning and self.tune.options:
                options = merge_options(options, self.tune.options)
                parts.append("tuning")
        run_id = ",".join([*parts, f"seed={seed}"])
        if self.trackio:
            options |= {"report_to": "trackio", "project": self.name, "run_name": run_id}
        return RunSpec(cell, seed, value, run_id, options)

    def baseline_of(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is compared with; `None` for a baseline itself, or where it is not in the grid."""
        levels = cell.levels | (self.baseline or {})
        return next((other for other in self.cells if other.levels == levels), None) if levels != cell.levels else None

    def is_baseline(self, cell: Cell) -> bool:
        return self.baseline is not None and _matches(cell.levels, self.baseline)

    def arm(self, cell: Cell) -> str:
        """The cell's levels on the baseline's axes: what is compared."""
        return ", ".join(cell.levels[axis] for axis in self.baseline or self.axes)

    def group(self, cell: Cell) -> str:
        """The cell's levels on the other axes: what stays equal in a comparison."""
        return ", ".join(level for axis, level in cell.levels.items() if axis not in (self.baseline or self.axes))


def merge_options(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `base`; options that are mappings in both are merged key by key, others replaced."""
    merged = dict(base)
    for name, value in new.items():
        old = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = merge_options(old, value) if both else value
    return merged


def _matches(levels: Mapping[str, str], pattern: Mapping[str, str | Sequence[str]]) -> bool:
    return all(levels[axis] in ([wanted] if isinstance(wanted, str) else wanted) for axis, wanted in pattern.items())
