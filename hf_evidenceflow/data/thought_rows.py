"""Loads rows with solutions, for [`LatentSFTTrainer`]: a chain of steps, soft targets, or several discrete traces."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..tasks.own_rows import ROWS_SYSTEM_PROMPT, prompt_column, read_answer, read_prompt
from ..tasks.text import MARKER
from .loading import load_split
from .thought_targets import thought_targets_from_traces


SPLITS = ("lines", "equations", "tokens")
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def step_splitter(kind: str, tokenizer=None) -> Callable[[str], list[str]]:
    """
    How a solution that is one text becomes steps.

    Args:
        kind (`str`):
            `"lines"`: each line is a step, without the calculator's annotations `<<...>>` of GSM8K; `"equations"`:
            each annotation is a step, as in the data of Coconut and CODI; `"tokens"`: each token of the tokenizer is,
            as soft targets need it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            For `"tokens"`.

    Raises:
        `ValueError`: if there is no such kind.

    Example:

    ```python
    >>> from hf_evidenceflow.data.thought_rows import step_splitter

    >>> text = "Half is 48/2=<<48/2=24>>24.\\nTogether 48+24=<<48+24=72>>72."
    >>> step_splitter("lines")(text), step_splitter("equations")(text)
    (['Half is 48/2=24.', 'Together 48+24=72.'], ['<<48/2=24>>', '<<48+24=72>>'])
    ```
    """
    if kind not in SPLITS:
        raise ValueError(f"`step_split` must be one of {', '.join(map(repr, SPLITS))}, got {kind!r}.")
    if kind == "lines":
        return lambda text: [line.strip() for line in _ANNOTATION.sub("", text).splitlines() if line.strip()]
    if kind == "equations":
        return _ANNOTATION.findall
    return lambda text: [
        tokenizer.decode([token], clean_up_tokenization_spaces=False)
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]


def load_thought_rows(
    name_or_path: str,
    split: str = "train",
    conversational: bool | str = True,
    max_samples: int | None = None,
    seed: int | None = None,
    system_prompt: str | None = ROWS_SYSTEM_PROMPT,
    steps_column: str = "steps",
    split_steps: Callable[[str], list[str]] | None = None,
) -> list[dict[str, Any]]:
    """
    Loads problems with what their thoughts are taught.

    A row has `prompt` or `question`, `answer`, and at least one of: `thought_targets`, for each thought a dictionary
    of texts and weights; `traces`, several solutions; `steps`, one solution; or an `answer` that is a whole solution
    which ends in `#### <answer>`, as in GSM8K. A solution is a list of steps or one text, of which what stands before
    `####` is split. Traces become `thought_targets` ([`thought_targets_from_traces`]), and the first one the `steps`
    if there are none.

    Args:
        steps_column (`str`, *optional*, defaults to `"steps"`):
            Column of the one solution, such as `"cot"`.
        split_steps (`Callable[[str], list[str]]`, *optional*):
            Takes a text to its steps; a [`step_splitter`], by default that of lines.
        name_or_path, split, conversational, max_samples, seed, system_prompt:
            As in all loaders, see [`hf_evidenceflow.tasks`].

    Returns:
        `list[dict]`: rows with `prompt`, `answer`, and `steps` or `thought_targets` or both.

    Raises:
        `ValueError`: if a row lacks a prompt, an answer or a solution; the message names it.
    """
    split_steps = split_steps or step_splitter("lines")
    dataset = load_split(name_or_path, split, (), ("answer",), max_samples, seed)
    asked = prompt_column(dataset, name_or_path)
    rows = []
    for index, row in enumerate(dataset):
        taught = _read_solutions(index, row, steps_column, split_steps)
        prompt = read_prompt(index, row[asked], asked, system_prompt, conversational)
        rows.append({"prompt": prompt, "answer": read_answer(index, row["answer"]), **taught})
    return rows


def _read_solutions(index: int, row: Mapping[str, Any], steps_column: str, split) -> dict[str, list]:
    steps, traces, targets = row.get(steps_column), row.get("traces"), row.get("thought_targets")
    if steps is None and not traces and targets is None and MARKER in str(row["answer"]):
        steps = row["answer"]
    taught: dict[str, list] = {}
    if steps is not None:
        taught["steps"] = _read_steps(steps, split, f"`{steps_column}` of row {index}")
    if traces:
        traces = [_read_steps(trace, split, f"Trace {place} of row {index}") for place, trace in enumerate(traces)]
        taught.setdefault("steps", traces[0])
        try:
            targets = thought_targets_from_traces(traces) if targets is None else targets
        except (TypeError, ValueError) as error:
            raise ValueError(f"Row {index}: {error}") from error
    if targets is not None:
        taught["thought_targets"] = targets
    if not taught:
        raise ValueError(
            f"Row {index} says nothing about its thoughts: it needs `traces` (several solutions), `thought_targets`, "
            f"`{steps_column}` (one solution), or an `answer` that is a solution and ends in `{MARKER} <answer>`; it "
            f"has {', '.join(name for name, value in row.items() if value is not None)}."
        )
    return taught


def _read_steps(value: str | Sequence[str], split, place: str) -> list[str]:
    if isinstance(value, str):
        return split(value.partition(MARKER)[0])
    if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
        raise ValueError(f"{place} must be a text or a list of texts, got {value!r}. Correct or remove the row.")
    return value
