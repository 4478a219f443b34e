"""A model's own solutions of problems, and the training rows that come of them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.data.thought_targets import thought_targets_from_traces, traces_from_samples
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.recipes.experiments.latent_evaluation import completion_tokens


Problems = Sequence[Mapping[str, Any]]

SAMPLED_AT_ONCE = 32  # problems


def split_steps(text: str) -> list[str]:
    """The steps of a chain in words, each with the space before it."""
    return re.findall(r"\s?\S+", text)


def sample_traces(
    model, tokenizer, problems: Problems, samples: int, seed: int, reward: Callable[..., Sequence[float]]
) -> list[dict[str, Any]]:
    """
    Several solutions of each problem at temperature 1.

    Returns:
        `list[dict]`: in the order of the problems; `samples`, the texts, and `traces`, the chains among them that name
        as many cups as the problem has moves; `right`, those of them that end in the right answer.
    """
    names = {name for problem in problems for target in problem["thought_targets"] for name in target}
    texts: list[list[str]] = [[] for _ in problems]
    for batch in generate_completions(
        model,
        tokenizer,
        [problem["prompt"] for problem in problems],
        max_new_tokens=completion_tokens(tokenizer, problems),
        batch_size=SAMPLED_AT_ONCE * samples,
        num_samples=samples,
        do_sample=True,
        seed=seed,
    ):
        for completion in batch:
            texts[completion.index].append(completion.text)
    rows = []
    for problem, drawn in zip(problems, texts):
        moves = len(problem["thought_targets"])
        found = {
            "traces": traces_from_samples(drawn, split_steps),
            "right": traces_from_samples(drawn, split_steps, reward=reward, answer=problem["answer"]),
        }
        kept = {
            key: [trace for trace in traces if len(trace) == moves and names.issuperset(trace)]
            for key, traces in found.items()
        }
        rows.append({"samples": drawn, **kept})
    return rows


def problems_with_targets(problems: Problems, traced: Problems) -> list[dict[str, Any]]:
    """
    Problems with the targets of their traces, and a trace as `steps`: the first right one, or else the first. Those
    without a trace are left out.

    Raises:
        `ValueError`: if no problem has a trace.
    """
    if not any(row["traces"] for row in traced):
        raise ValueError("No sample is a whole chain, so there is nothing to learn from. Train the start for longer.")
    return [
        {
            **problem,
            "thought_targets": thought_targets_from_traces(row["traces"]),
            "steps": (row["right"] or row["traces"])[0],
        }
        for problem, row in zip(problems, traced, strict=True)
        if row["traces"]
    ]


def trace_facts(problems: Problems, used: Problems, traced: Problems) -> dict[str, float]:
    """
    What the targets are worth: shares of the samples that are whole chains and right, the number of problems with and
    without traces, and the mean share of a target on the cups that are possible, by the oracle.
    """
    count = sum(len(row["samples"]) for row in traced)
    oracle = {problem["prompt"]: problem["thought_targets"] for problem in problems}
    shares = [
        sum(weight for name, weight in target.items() if name in possible)
        for problem in used
        for target, possible in zip(problem["thought_targets"], oracle[problem["prompt"]])
    ]
    return {
        "problems": len(used),
        "problems_without_traces": len(problems) - len(used),
        "whole_chains": sum(len(row["traces"]) for row in traced) / count,
        "right_samples": sum(len(row["right"]) for row in traced) / count,
        "target_share_on_possible": sum(shares) / max(len(shares), 1),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines."""
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
