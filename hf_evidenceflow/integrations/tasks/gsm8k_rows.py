"""GSM8K from a local folder, asked and graded as by `recipes/evaluate_gsm8k.py`, for the harnesses' task files."""

import os

from hf_evidenceflow.tasks.gsm8k import grade, load_gsm8k


GRADERS = ("strict", "flexible")


def data_folder() -> str:
    """The folder with `test.jsonl` that the environment variable `GSM8K_DATA` names; a `ValueError` without it."""
    folder = os.environ.get("GSM8K_DATA")
    if not folder:
        raise ValueError("Set the environment variable GSM8K_DATA to the folder that holds GSM8K's `test.jsonl`.")
    return folder


def load_dataset(**_):
    """The test problems with their `prompt` as one text, for lm-evaluation-harness."""
    return {"test": load_gsm8k(data_folder(), split="test", conversational=False)}


def grades(completion: str, gold: str) -> dict[str, float]:
    """0.0 or 1.0 by grader."""
    return {grader: grade(completion, gold, grader) for grader in GRADERS}


def process_results(row: dict, results: list[str]) -> dict[str, float]:
    """What lm-evaluation-harness asks of a task."""
    return grades(results[0], row["answer"])
