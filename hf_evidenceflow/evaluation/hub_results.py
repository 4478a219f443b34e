"""The result of an evaluation as the Hub reads it from a model's repository: `.eval_results/<task>.yaml`."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ..atomic_write import atomic_write_text
from ..tasks.benchmarks import BENCHMARKS, Benchmark
from ..version import __version__


def why_no_hub_result(task: str, problems: int) -> str | None:
    """Why the Hub has no place for the result of so many problems of a task; `None` if it has one."""
    published = BENCHMARKS.get(task)
    if published is None or published.task_id is None:
        return f"no leaderboard of `{task}` is known"
    if problems != published.problems:
        return f"{problems} of the {published.problems} problems of {published.dataset} were evaluated"
    return None


def hub_result(
    published: Benchmark,
    metrics: Mapping[str, Any],
    grader: str,
    settings: Mapping[str, Any],
    source_url: str | None = None,
) -> dict[str, Any]:
    """
    An entry in the format of the [Hub](https://huggingface.co/docs/hub/eval-results): the mean accuracy of the sampled
    completions, or without any the greedy one, in percent.

    Args:
        published ([`Benchmark`]): the test set.
        metrics (`Mapping`): by decoding, what [`~evaluation.accuracy.summarize_completions`] gives.
        grader (`str`): whose accuracy it is.
        settings (`Mapping`): what the notes name; what is `None` is left out.
        source_url (`str`, *optional*): page with details.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    measure, interval = _accuracy(metrics, grader)
    named = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}))
    entry = EvalResultEntry(
        dataset_id=published.dataset,
        task_id=published.task_id,
        value=round(100 * interval["value"], 2),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        source_url=source_url,
        source_name=None if source_url is None else "Details of the evaluation",
        notes=f"0-shot, {measure}, 95 % interval {100 * interval['low']:.1f} to {100 * interval['high']:.1f}, grader "
        f"{grader}, {named}; hf_evidenceflow {__version__}",
    )
    return eval_result_entries_to_yaml([entry])[0]


def write_hub_result(folder: str | os.PathLike, task: str, entry: Mapping[str, Any]) -> Path:
    """Write the entry as the only one of a task into a model's or another folder; returns the path of the file."""
    from huggingface_hub.constants import EVAL_RESULTS_FOLDER

    path = Path(folder).expanduser() / EVAL_RESULTS_FOLDER / f"{task}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write_text(path, yaml.safe_dump([dict(entry)], sort_keys=False, allow_unicode=True))


def _accuracy(metrics, grader):
    if "sampled" not in metrics:
        return "greedy", metrics["greedy"]["graders"][grader]["accuracy"]
    measures = metrics["sampled"]["graders"][grader]
    return next((name, measures[name]) for name in measures if name.startswith("avg@"))
