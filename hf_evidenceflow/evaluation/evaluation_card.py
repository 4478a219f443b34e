"""The result of an evaluation in the model card of the folder that was evaluated."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..atomic_write import atomic_write_text
from ..files import read_text
from ..report.model_card import Sample
from ..report.tables import markdown_table
from ..run_folder.manifest import has_manifest


CARD = "README.md"
_TAG = "hf_evidenceflow"  # all cards of our trainers have it
_LAST_HEADING = "\n## Reproduction\n"


@dataclass
class Evaluation:
    """
    What an evaluation came to.

    Args:
        task, dataset, split (`str`), problems (`int`):
            Name of the task, such as `"GSM8K"`, its data, and their number.
        settings (`Mapping[str, Any]`):
            What the completions depend on besides the weights.
        metrics (`Mapping[str, Mapping]`):
            By decoding (`"greedy"`, `"sampled"`), what [`~evaluation.accuracy.summarize_completions`] gives.
        samples (`Sequence[Sample]`, *optional*):
            Completions to show.
    """

    task: str
    dataset: str
    split: str
    problems: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    samples: Sequence[Sample] = ()

    @property
    def key(self) -> str:
        """The same for evaluations of the same task with the same settings."""
        text = json.dumps([self.task, self.dataset, self.split, self.problems, self.settings], sort_keys=True)
        return f"{self.task} {hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def dataset_name(self) -> str:
        return Path(self.dataset).name if os.path.exists(self.dataset) else self.dataset

    @property
    def measures(self) -> list[tuple[str, str, str, Mapping[str, float]]]:
        """Decoding, grader, name and interval of each measure."""
        return [
            (decoding, grader, name, interval)
            for decoding, summary in self.metrics.items()
            for grader, measures in summary["graders"].items()
            for name, interval in measures.items()
            if isinstance(interval, Mapping)
        ]


def why_no_card(model: str | os.PathLike) -> str | None:
    """Why the result of an evaluation has no place in a model card; `None` if it has one."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"{model} is no folder here"
    if not (folder / CARD).is_file():
        return f"{model} has no {CARD}"
    if has_manifest(folder):
        return f"{model} is a checkpoint, whose files stay as they were written"
    if not (os.access(folder, os.W_OK) and os.access(folder / CARD, os.W_OK)):
        return f"{model} is read-only"
    try:
        tags = _card(folder).data.tags or []
    except (OSError, ValueError, yaml.YAMLError) as error:
        return f"its {CARD} cannot be read ({error})"
    return None if _TAG in tags else f"the {CARD} of {model} was not written here"


def add_evaluation(folder: str | os.PathLike, evaluation: Evaluation) -> Path:
    """
    Write a result into the model card of a folder, for which [`why_no_card`] gives no reason; returns the card's path.

    The card gets a section, and metadata (`model-index`). Those of the same task and settings are replaced; the rest
    stays.

    Raises:
        `OSError`: if the card cannot be read or written.
        `ValueError`: if its metadata are no YAML mapping.
    """
    folder = Path(folder).expanduser()
    card = _card(folder)
    card.text = _with_section(card.text, evaluation)
    results = _eval_results(evaluation)
    kept = [old for old in card.data.eval_results or () if not any(map(old.is_equal_except_value, results))]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = [*kept, *results]
    return atomic_write_text(folder / CARD, str(card))


def _card(folder):
    from huggingface_hub import ModelCard

    return ModelCard(read_text(folder / CARD).replace("\r\n", "\n"))


def _with_section(text: str, evaluation: Evaluation) -> str:
    first, last = f"<!-- evaluation {evaluation.key} -->\n", f"<!-- end of evaluation {evaluation.key} -->\n"
    section = f"{first}\n{_section(evaluation)}\n{last}"
    start = text.rfind(first)
    if start >= 0 and (end := text.find(last, start)) >= 0:
        return text[:start] + section + text[end + len(last) :]
    place = text.rfind(_LAST_HEADING)
    if place < 0:
        return f"{text.rstrip()}\n\n{section}"
    return f"{text[: place + 1]}{section}{text[place:]}"


def _section(evaluation: Evaluation) -> str:
    settings = ", ".join(f"`{name}` {value}" for name, value in evaluation.settings.items() if value is not None)
    rows = [
        (decoding, f"`{grader}`", name, f"{each['value']:.4f}", f"{each['low']:.4f} to {each['high']:.4f}")
        for decoding, grader, name, each in evaluation.measures
    ]
    lines = [
        f"## {evaluation.task}",
        "",
        f"{evaluation.problems:,} problems of `{evaluation.dataset_name}`, split `{evaluation.split}`. {settings}.",
        "",
        markdown_table(("decoding", "grader", "measure", "value", "95 % interval"), rows, align="l"),
    ]
    for sample in evaluation.samples:
        text = sample.text.replace("<!--", "<! --")  # a completion cannot end the section
        lines += ["", sample.heading, "", f"{sample.fence}text", text, sample.fence]
    return "\n".join(lines) + "\n"


def _eval_results(evaluation: Evaluation) -> list:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=evaluation.dataset_name,
            dataset_name=evaluation.task,
            dataset_split=evaluation.split,
            metric_type="accuracy",
            metric_name=f"{name}, {decoding}, grader {grader}",
            metric_value=interval["value"],
            metric_args={"problems": evaluation.problems}
            | {setting: value for setting, value in evaluation.settings.items() if value is not None},
        )
        for decoding, grader, name, interval in evaluation.measures
    ]
