"""Scores of several sampled completions a problem, and pass@k."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.statistics import pass_at_k
from hf_evidenceflow.tasks import Reward


def sampled_scores(
    model, tokenizer, problems: Sequence[Mapping[str, Any]], reward: Reward, samples: int, **settings
) -> list[list[float]]:
    """
    Scores of 0 and 1 of each problem's samples at temperature 1, in the order of the problems.

    Args:
        problems (`Sequence[Mapping]`): rows with `prompt` and `answer`.
        reward ([`Reward`]): grades a completion.
        samples (`int`): completions a problem.
        settings: `max_new_tokens`, `batch_size` and `seed` of [`generate_completions`].
    """
    prompts = [problem["prompt"] for problem in problems]
    scores: list[list[float]] = [[] for _ in problems]
    for batch in generate_completions(model, tokenizer, prompts, do_sample=True, num_samples=samples, **settings):
        found = reward([item.text for item in batch], [problems[item.index]["answer"] for item in batch])
        for item, score in zip(batch, found, strict=True):
            scores[item.index].append(float(score))
    return scores


def pass_means(scores: Sequence[Sequence[float]], ks: Sequence[int]) -> dict[str, float]:
    """`pass@k`, the mean over the problems, by name such as `"pass32"`; each k is at most the number of samples."""
    return {f"pass{k}": sum(pass_at_k(len(each), int(sum(each)), k) for each in scores) / len(scores) for k in ks}
