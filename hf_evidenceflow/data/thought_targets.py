"""
Soft targets of latent thoughts, made from discrete solutions.

The rule is that of CoT2 (Gozeten et al. 2025, arXiv 2505.23648): the target of a thought is the distribution of the
step that stands at its place, over several solutions of the problem. The solutions may be written, or sampled from the
model that is to be trained.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from ..tasks.text import MARKER, completion_text


def thought_targets_from_traces(traces: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """
    One distribution per position over the steps that the traces have there.

    Args:
        traces (`Sequence[Sequence[str]]`):
            Several solutions of one problem, each a list of steps. A solution that occurs twice counts twice. From the
            end of a shorter one on, only the longer ones count.

    Returns:
        `list[dict[str, float]]`: as long as the longest trace; step to weight, which sum to 1 at each position. Rows
        for [`LatentSFTTrainer`] hold it as `thought_targets`, where each step must be one token.

    Raises:
        `ValueError`: if there is no trace, or if one has no steps.
        `TypeError`: if a trace is a text and no list of texts.

    Example:

    ```python
    >>> from hf_evidenceflow import thought_targets_from_traces

    >>> thought_targets_from_traces([["c1", "c4"], ["c1", "c2"], ["c3"]])
    [{'c1': 0.6666666666666666, 'c3': 0.3333333333333333}, {'c4': 0.5, 'c2': 0.5}]
    ```
    """
    if len(traces) == 0:
        raise ValueError("There are no traces to make targets from. Leave out problems without a solution.")
    for place, trace in enumerate(traces):
        _check_trace(place, trace)
    longest = max(map(len, traces))
    return [_shares(trace[place] for trace in traces if place < len(trace)) for place in range(longest)]


def traces_from_samples(
    samples: Sequence[str | list[dict]],
    split: str | Callable[[str], list[str]] = "\n",
    marker: str = MARKER,
    reward: Callable[..., Sequence[float]] | None = None,
    answer: str | None = None,
) -> list[list[str]]:
    """
    The traces in completions of one problem, such as a model's own samples: the steps before the answer's marker.

    Args:
        samples (`Sequence[str]` or `Sequence[list[dict]]`):
            Completions, as texts or as TRL's chat messages.
        split (`str` or `Callable[[str], list[str]]`, *optional*, defaults to a line break):
            What stands between two steps, or a function that takes the text before the marker to its steps. Empty
            steps are left out.
        marker (`str`, *optional*, defaults to `"####"`):
            What begins the answer. Samples that do not have it exactly once are left out.
        reward (`Callable`, *optional*):
            A reward function as TRL takes it, such as [`set_tracking_reward`]: only samples with a reward of 1 are
            kept. Without it all are.
        answer (`str`, *optional*):
            The gold that the reward grades by; goes with `reward`.

    Returns:
        `list[list[str]]`: the traces, in the order of the samples; empty if none is kept.

    Raises:
        `ValueError`: if the separator is empty, or if only one of `reward` and `answer` is given.

    Example:

    ```python
    >>> from hf_evidenceflow import traces_from_samples
    >>> from hf_evidenceflow.tasks import set_tracking_reward

    >>> samples = [" red blue#### blue", " red gold#### gold"]
    >>> traces_from_samples(samples, " ", reward=set_tracking_reward, answer="gold")
    [['red', 'gold']]
    ```
    """
    if split == "":
        raise ValueError("`split` must be a text between steps, got an empty one. Pass a function that splits a text.")
    if (reward is None) != (answer is None):
        raise ValueError("`reward` and `answer` go together: pass the reward function and the gold, or neither.")
    kept = [sample for sample in samples if completion_text(sample).count(marker) == 1]
    if reward is not None and kept:
        scores = reward(completions=kept, answer=[answer] * len(kept))
        kept = [sample for sample, score in zip(kept, scores, strict=True) if score == 1]
    texts = [completion_text(sample).partition(marker)[0] for sample in kept]
    traces = [
        [step for step in (text.split(split) if isinstance(split, str) else split(text)) if step] for text in texts
    ]
    return [trace for trace in traces if trace]


def _check_trace(place: int, trace: Sequence[str]) -> None:
    if isinstance(trace, str):
        raise TypeError(f"Trace {place} must be a list of steps, got the text {trace!r}. Split it into its steps.")
    if len(trace) == 0:
        raise ValueError(f"Trace {place} has no steps. Leave it out.")
    for step in trace:
        if not isinstance(step, str):
            raise TypeError(f"A step of trace {place} must be a text, got {step!r} ({type(step).__name__}).")


def _shares(steps) -> dict[str, float]:
    counts = Counter(steps)
    return {step: count / counts.total() for step, count in counts.items()}
