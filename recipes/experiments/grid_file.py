"""Reading a grid from YAML: every key and value is checked, and an error says what fits."""

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_evidenceflow.files import check_fields, read_yaml
from hf_evidenceflow.recipes.experiments.grid import Grid, Tune, merge_options, packaged_file


# These belong to the runner; an option of the same name would be overruled without a word.
RUNNER_OPTIONS = ("output_dir", "seed", "resume_from_checkpoint", "config")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def load_grid(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> Grid:
    """
    Read and check the grid of an experiment.

    Args:
        path (`str` or `os.PathLike`):
            YAML file. Its keys are

            - `name`: of the experiment;
            - `recipe`: script that takes `--config`, `--output_dir`, `--seed` and `--resume_from_checkpoint`; this and
              `config` are relative to the current folder;
            - `config`: YAML with the recipe's base options;
            - `overrides`: options for all runs;
            - `axes`: `{axis: {level: {option: value}}}`; each combination of levels is a cell;
            - `seeds`: each cell is run with each;
            - `tune`: see [`Tune`];
            - `exclude`, `only`: lists of `{axis: level or [levels]}`: cells left out, and the only ones kept;
            - `baseline`: `{axis: level}`: what each cell is compared with, the other axes equal;
            - `metrics`: keys of the recipe's metrics to report;
            - `relative_cost`: `{level of the baseline's axis: time of a step relative to the baseline's}`, used for
              the comparison at equal wall-clock instead of the runs' own clocks;
            - `trackio`: whether the runs log to one Trackio project;
            - `slurm`: options of `sbatch` for each run on a cluster, in submitit's names: `time` (minutes, required),
              `partition`, `account`, `mem` (`"32GB"`), `cpus_per_task`, `gpus_per_node`, `setup` (lines of shell).

            Options that are mappings are merged key by key: `config`, then `overrides`, then the axes.
        overrides (`Mapping`, *optional*):
            Options for all runs over the grid's own `overrides`, such as where the data lies.

    Returns:
        [`Grid`]: The grid.

    Raises:
        OSError: If a file is not there or cannot be read.
        ValueError: If a key is unknown or a value does not fit.
        ImportError: If `trackio` is asked for and not installed.
    """
    path = packaged_file(path)
    data = read_yaml(path)
    if overrides:
        data["overrides"] = merge_options(_parse_options(data.get("overrides"), "overrides"), overrides)
    base_options = {}
    if data.get("config"):
        check_fields(data, path, config=str)
        base_options = read_yaml(packaged_file(data["config"]))
    try:
        grid = parse_grid(data, base_options)
    except ValueError as error:
        raise ValueError(f"`{path}` is no grid: {error}") from error
    if not packaged_file(grid.recipe).is_file():
        raise ValueError(
            f"`recipe` of `{path}` names no file: {grid.recipe!r}. Correct it; paths are relative to {Path.cwd()}."
        )
    return grid


def parse_grid(data: Mapping[str, Any], base_options: Mapping[str, Any] | None = None) -> Grid:
    """Check the content of a grid's YAML, with that of the file that its `config` names; see [`load_grid`]."""
    known = [name for name in Grid.__dataclass_fields__ if name != "base_options"]
    check_keys(data, known, "the grid")
    for name in ("name", "recipe", "seeds", "metrics"):
        if not data.get(name):
            raise ValueError(f"The grid has no `{name}`, got {data.get(name)!r}. Add it.")
    if not _NAME.fullmatch(str(data["name"])):
        raise ValueError(f"`name` must be made of letters, digits and `._+-`, got {data['name']!r}.")
    axes = _parse_axes(data.get("axes") or {})
    base = {name: value for name, value in (base_options or {}).items() if name not in RUNNER_OPTIONS}
    grid = Grid(
        name=str(data["name"]),
        recipe=str(data["recipe"]),
        config=data.get("config"),
        axes=axes,
        seeds=_parse_seeds(data["seeds"]),
        metrics=_parse_metrics(data["metrics"]),
        overrides=_parse_options(data.get("overrides"), "overrides"),
        tune=_parse_tune(data.get("tune"), axes),
        exclude=[_parse_pattern(entry, axes, "exclude") for entry in data.get("exclude") or []],
        only=[_parse_pattern(entry, axes, "only") for entry in data.get("only") or []],
        baseline=_parse_baseline(data.get("baseline"), axes),
        trackio=_parse_trackio(data.get("trackio", False)),
        slurm=_parse_slurm(data.get("slurm")),
        relative_cost=_parse_relative_cost(data.get("relative_cost"), data.get("baseline"), axes),
        base_options=base,
    )
    if not grid.cells:
        raise ValueError("`exclude` and `only` leave no cell of the grid.")
    return grid


def check_keys(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse unknown keys; `where` says in the message what `data` is."""
    known = list(known)
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping of {known}, got {data!r}.")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {known}."
            raise ValueError(f"Unknown key `{key}` in {where}: {hint}")


def _parse_options(options: Any, where: str) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"`{where}` must map recipe options to values, got {options!r}.")
    if taken := [name for name in options if name in RUNNER_OPTIONS]:
        raise ValueError(f"`{where}` sets {taken}, which the runner decides. Use `seeds`, `config` or --output_dir.")
    return dict(options)


def _parse_axes(axes: Any) -> dict[str, dict[str, dict]]:
    check_keys(axes, axes, "`axes`")
    parsed, owner = {}, {}
    for axis, levels in axes.items():
        _check_name(axis, "axis")
        if not isinstance(levels, Mapping) or not levels:
            raise ValueError(f"Axis `{axis}` must map level names to options, got {levels!r}.")
        for level in levels:
            _check_name(level, f"level of axis `{axis}`")
        parsed[str(axis)] = {str(level): _parse_options(o, f"axes.{axis}.{level}") for level, o in levels.items()}
        for option in {leaf for options in parsed[axis].values() for leaf in _leaves(options)}:
            if owner.setdefault(option, axis) != axis:
                raise ValueError(
                    f"The axes `{owner[option]}` and `{axis}` both set `{option}`. Let one axis decide it."
                )
    if "seed" in parsed:
        raise ValueError("`seed` cannot be an axis: list the seeds under `seeds`.")
    return parsed


def _leaves(options: Mapping[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, value in options.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}"}
    return found


def _check_name(name: Any, what: str) -> None:
    if isinstance(name, bool):
        raise ValueError(
            f"The name of a {what} is the truth value {name}: YAML reads on, off, yes and no so. Quote it."
        )
    if not _NAME.fullmatch(str(name)):
        raise ValueError(f"The name of a {what} must be made of letters, digits and `._+-`, got {name!r}.")


def _parse_seeds(seeds: Any) -> list[int]:
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise ValueError(f"`seeds` must be a list of different whole numbers from 0, got {seeds!r}.")
    return seeds


def _parse_metrics(metrics: Any) -> list[str]:
    if not isinstance(metrics, list) or not all(isinstance(name, str) for name in metrics):
        raise ValueError(f"`metrics` must be a list of names, got {metrics!r}.")
    return metrics


def _parse_tune(tune: Any, axes: Mapping[str, Mapping]) -> Tune | None:
    if tune is None:
        return None
    check_keys(tune, Tune.__dataclass_fields__, "`tune`")
    if missing := [name for name in ("option", "values", "metric") if not tune.get(name)]:
        raise ValueError(f"`tune` has no {missing}.")
    # YAML 1.1 reads 1e-3 (no point) as text.
    values = [_number(value) for value in tune["values"]] if isinstance(tune["values"], list) else []
    names = [str(value) for value in values]
    if len(values) < 2 or len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
        raise ValueError(f"`tune.values` must list at least two different plain values, got {tune['values']!r}.")
    options = _parse_options(tune.get("options"), "tune.options")
    parsed = Tune(**{**tune, "values": values, "options": options})
    if parsed.mode not in ("min", "max"):
        raise ValueError(f"`tune.mode` must be 'min' or 'max', got {parsed.mode!r}.")
    if type(parsed.seed) is not int:
        raise ValueError(f"`tune.seed` must be a whole number, got {parsed.seed!r}.")
    if parsed.option in RUNNER_OPTIONS:
        raise ValueError(f"`tune.option` cannot be `{parsed.option}`, which the runner decides.")
    setting = [axis for axis, levels in axes.items() if any(parsed.option in options for options in levels.values())]
    if setting or parsed.option in axes:
        raise ValueError(f"`{parsed.option}` is tuned and also set by the axis `{(setting or [parsed.option])[0]}`.")
    if parsed.per is not None:
        check_keys(dict.fromkeys(parsed.per), axes, "`tune.per`")
    return parsed


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _parse_pattern(pattern: Any, axes: Mapping[str, Mapping], where: str) -> dict[str, list[str]]:
    check_keys(pattern, axes, f"`{where}`")
    parsed = {
        axis: [str(level) for level in (levels if isinstance(levels, list) else [levels])]
        for axis, levels in pattern.items()
    }
    for axis, levels in parsed.items():
        check_keys(dict.fromkeys(levels), axes[axis], f"the levels of `{axis}` in `{where}`")
    return parsed


def _parse_baseline(baseline: Any, axes: Mapping[str, Mapping]) -> dict[str, str] | None:
    if baseline is None:
        return None
    parsed = _parse_pattern(baseline, axes, "baseline")
    if not parsed or any(len(levels) != 1 for levels in parsed.values()):
        raise ValueError(f"`baseline` must name one level of one or more axes, got {baseline!r}.")
    return {axis: levels[0] for axis, levels in parsed.items()}


def _parse_relative_cost(costs: Any, baseline: Any, axes: Mapping[str, Mapping]) -> dict[str, float] | None:
    if costs is None:
        return None
    if not isinstance(baseline, Mapping) or len(baseline) != 1:
        raise ValueError(f"`relative_cost` needs a `baseline` of exactly one axis, got {baseline!r}.")
    ((axis, level),) = baseline.items()
    check_keys(costs, axes[axis], "`relative_cost`")
    costs = {str(level): 1.0} | dict(costs)
    if wrong := {name: cost for name, cost in costs.items() if type(cost) not in (int, float) or not cost > 0}:
        raise ValueError(f"`relative_cost` must hold numbers above 0, got {wrong}.")
    if costs[str(level)] != 1:
        raise ValueError(f"`relative_cost` of the baseline `{level}` must be 1, got {costs[str(level)]}.")
    if missing := [name for name in axes[axis] if name not in costs]:
        raise ValueError(f"`relative_cost` has no cost of {missing}: two kinds of clock cannot be mixed.")
    return {name: float(cost) for name, cost in costs.items()}


def _parse_trackio(trackio: Any) -> bool:
    if not isinstance(trackio, bool):
        raise ValueError(f"`trackio` must be true or false, got {trackio!r}.")
    if trackio and importlib.util.find_spec("trackio") is None:
        raise ImportError("The grid asks for `trackio: true`, which needs trackio: pip install trackio.")
    return trackio


def _parse_slurm(slurm: Any) -> dict[str, Any] | None:
    if slurm is None:
        return None
    if not isinstance(slurm, Mapping) or type(slurm.get("time")) is not int or slurm["time"] < 1:
        raise ValueError(f"`slurm` must map options to values, among them `time` in whole minutes, got {slurm!r}.")
    return dict(slurm)
