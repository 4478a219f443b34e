"""Greedy accuracy of a thinking model by stock `generate`: as trained, forced to choose, and with altered states."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hf_evidenceflow.models.thinking.intervention import ThinkingIntervention
from hf_evidenceflow.rollouts.generation_settings import own_generation_config
from hf_evidenceflow.tasks import MARKER, Reward


INTERVENTIONS = ("off", "shuffle", "zero")

Problems = Sequence[Mapping[str, Any]]


def evaluate_thinking(
    model, tokenizer, problems: Problems, reward: Reward, batch_size: int = 500
) -> dict[str, list[float]]:
    """
    Scores of 0 and 1, one a problem, of greedy completions.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal LM of a thinking family; its mode is left as it was.
        problems (`Sequence[Mapping]`):
            Rows with `prompt`, `answer`, `candidates` (names of which one is right) and `thought_targets`.
        reward ([`Reward`]):
            Grades a completion.
        batch_size (`int`, *optional*, defaults to `500`):
            Completions at once; shuffled states are those of other problems of the batch.

    Returns:
        `dict[str, list[float]]`: under `"accuracy"`; `"forced"`, the same where only the candidates can follow the
        marker; and for a model with states `"off"`, `"shuffle"` and `"zero"`, by [`ThinkingIntervention`].
    """
    scores = {
        "accuracy": greedy_scores(model, tokenizer, problems, reward, batch_size),
        "forced": greedy_scores(model, tokenizer, problems, reward, batch_size, forced=True),
    }
    if model.config.thinking_method.fuses:
        for kind in INTERVENTIONS:
            with ThinkingIntervention(kind):
                scores[kind] = greedy_scores(model, tokenizer, problems, reward, batch_size)
    return scores


@torch.no_grad()
def greedy_scores(
    model, tokenizer, problems: Problems, reward: Reward, batch_size: int, forced: bool = False
) -> list[float]:
    """The reward of each problem's greedy completion, in the order of the problems."""
    was_training = model.training
    model.eval()
    scores = []
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        prompts = [problem["prompt"] for problem in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        width = inputs["input_ids"].shape[1]
        choose = {"prefix_allowed_tokens_fn": _candidates_only(tokenizer, batch, width)} if forced else {}
        config = own_generation_config(
            model,
            do_sample=False,
            max_new_tokens=completion_tokens(tokenizer, batch),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        output = model.generate(**inputs, generation_config=config, tokenizer=tokenizer, **choose)
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        scores += reward(texts, [problem["answer"] for problem in batch])
    model.train(was_training)
    return scores


def completion_tokens(tokenizer, problems: Problems) -> int:
    """Room for the thoughts, the marker with the longest answer, and the end."""
    names = {name for problem in problems for name in problem["candidates"]}
    longest = max(len(_ids(tokenizer, f"{MARKER} {name}")) for name in names)
    return max(len(problem["thought_targets"]) for problem in problems) + longest + 1


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _candidates_only(tokenizer, problems: Problems, width: int) -> Callable[[int, torch.Tensor], list[int]]:
    """Tokens that may come next in a batch with prompts of `width`: behind the marker only those of a candidate."""
    everything, marker = list(range(len(tokenizer))), _ids(tokenizer, MARKER)
    answers = [
        [_ids(tokenizer, f"{MARKER} {name}")[len(marker) :] for name in problem["candidates"]] for problem in problems
    ]

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        said = _after(marker, ids[width:].tolist())
        if said is None:
            return everything
        begun = [answer for answer in answers[row] if answer[: len(said)] == said]
        return [answer[len(said)] for answer in begun if len(answer) > len(said)] or [tokenizer.eos_token_id]

    return allowed


def _after(marker: list[int], ids: list[int]) -> list[int] | None:
    """What follows the first marker, if there is one."""
    for place in range(len(ids) - len(marker) + 1):
        if ids[place : place + len(marker)] == marker:
            return ids[place + len(marker) :]
    return None
