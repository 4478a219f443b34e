"""The rows that a recipe's picture is drawn from: one form for all recipes, for one seed or several."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_json, to_plain
from hf_evidenceflow.evaluation.statistics import Interval
from hf_evidenceflow.files import check_fields, read_json
from hf_evidenceflow.recipes.experiments.runs import to_number
from hf_evidenceflow.report.curves import curve


FILE = "picture.json"
MOST_POINTS = 200
_INTERVAL = ("value", "low", "high")
_REMEDY = "Give output folders of a course recipe, or copies of their picture.json."


@dataclass
class PictureRows:
    """
    What a picture shows.

    Args:
        recipe (`str`):
            Name of the recipe.
        seeds (`list[int]`):
            Seeds of the runs.
        settings (`dict`):
            Arguments of the recipe, without seed and folder.
        curves (`dict`, *optional*):
            By model and logged key: `steps`, and `runs` with the values of each seed.
        scores (`dict`, *optional*):
            Numbers, or `value`, `low` and `high` of an interval, in dictionaries and lists. Of several seeds: mean,
            least and greatest.
        once (`dict`, *optional*):
            What is drawn of the first seed only, as it has no mean.
    """

    recipe: str
    seeds: list[int]
    settings: dict[str, Any]
    curves: dict[str, dict[str, dict[str, list]]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    once: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("settings", "curves", "scores", "once"):
            setattr(self, name, _rounded(to_plain(getattr(self, name))))

    def spread(self, quantity: str) -> str:
        """The label of an axis on which error bars stand."""
        if len(self.seeds) == 1:
            return f"{quantity}, with 95 % interval"
        return f"{quantity}, mean and range of {len(self.seeds)} seeds"

    def write(self, path: str | os.PathLike) -> Path:
        return atomic_write_json(path, asdict(self))


def thinned(log: Sequence[Mapping], keys: Sequence[str]) -> dict[str, dict[str, list]]:
    """The curves of a log by key, those that it has: means over as many entries as leave 200 points."""
    found = {}
    for key in keys:
        steps, values = curve(log, key)
        width = -(-len(values) // MOST_POINTS)
        if values:
            parts = [slice(start, start + width) for start in range(0, len(values), width)]
            means = [sum(values[part]) / len(values[part]) for part in parts]
            found[key] = {"steps": [steps[part][-1] for part in parts], "runs": [means]}
    return found


def read_picture(path: str | os.PathLike) -> PictureRows:
    """
    The rows in an output folder, or in a file.

    Raises:
        `OSError`: if the file is not there.
        `ValueError`: if it is of another form.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. {_REMEDY}")
    content = read_json(path, remedy=_REMEDY)
    kinds = {"recipe": str, "seeds": list, "settings": dict, "curves": dict, "scores": dict, "once": dict}
    check_fields(content, path, remedy=_REMEDY, **kinds)
    return PictureRows(**{name: content[name] for name in kinds})


def merge_seeds(runs: Mapping[str, PictureRows]) -> PictureRows:
    """
    The rows of several seeds as those of one picture.

    Args:
        runs (`Mapping[str, PictureRows]`):
            Rows by what errors call them, of one recipe with the same settings and different seeds.

    Returns:
        [`PictureRows`]: curves with a run a seed; of scores mean, least and greatest; the rest of the first.

    Raises:
        `ValueError`: if the runs are no seeds of one study, or have nothing that a mean can be taken of.
    """
    (first_name, first), *others = runs.items()
    if not others:
        return first
    if not first.curves and not first.scores:
        raise ValueError(f"The picture of {first.recipe} is of a single run, got {len(runs)}. Give one.")
    for name, other in others:
        if other.recipe != first.recipe:
            raise ValueError(f"{first_name} is of {first.recipe}, {name} of {other.recipe}. Give runs of one recipe.")
        for key in sorted(first.settings.keys() | other.settings.keys()):
            values = [run.settings.get(key) for run in (first, other)]
            if values[0] != values[1]:
                raise ValueError(
                    f"`{key}` is {values[0]!r} in {first_name} and {values[1]!r} in {name}. Give runs that differ in "
                    "their seed only."
                )
    seeds = [seed for run in runs.values() for seed in run.seeds]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"The runs have the seeds {seeds}, one of them twice. Give each seed once.")
    return PictureRows(
        first.recipe,
        seeds,
        first.settings,
        _joined([run.curves for run in runs.values()]),
        _mean([run.scores for run in runs.values()]),
        first.once,
    )


def interval(score: Mapping[str, float] | float) -> Interval:
    """A score as an interval; that of a number without one ends where it begins."""
    if isinstance(score, Mapping):
        return Interval(*(score[end] for end in _INTERVAL))
    return Interval(score, score, score)


def _rounded(content: Any) -> Any:
    """Six digits, which no picture shows more of; words for numbers that JSON cannot hold are numbers again."""
    content = to_number(content)
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def _joined(curves: list[dict]) -> dict:
    joined = {}
    for model, by_key in curves[0].items():
        joined[model] = {}
        for key, first in by_key.items():
            every = [run.get(model, {}).get(key, {"steps": None}) for run in curves]
            if any(run["steps"] != first["steps"] for run in every):
                raise ValueError(f"The runs have logged `{key}` of {model} at other steps. Run them again.")
            joined[model][key] = {"steps": first["steps"], "runs": [values for run in every for values in run["runs"]]}
    return joined


def _mean(scores: list) -> Any:
    first = scores[0]
    if isinstance(first, dict) and set(first) == set(_INTERVAL):
        return _mean([score["value"] for score in scores])
    if isinstance(first, dict):
        if any(set(score) != set(first) for score in scores):
            raise ValueError(f"The runs have scored other things: {[sorted(score) for score in scores]}.")
        return {key: _mean([score[key] for score in scores]) for key in first}
    if isinstance(first, list):
        return [_mean(list(part)) for part in zip(*scores, strict=True)]
    if all(score == first for score in scores):
        return first
    return {"value": sum(scores) / len(scores), "low": min(scores), "high": max(scores)}
