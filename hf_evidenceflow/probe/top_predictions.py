"""What a causal LM holds most probable after a prompt, and how it ranks the token that really follows.

Shapes: T tokens of a prompt, V tokens of the vocabulary, k candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Candidate:
    """
    A token and its probability.

    Attributes:
        token_id (`int`):
            Its id.
        text (`str`):
            Its text.
        probability (`float`):
            Probability.
        rank (`int`):
            1 and the number of tokens that are more probable.
    """

    token_id: int
    text: str
    probability: float
    rank: int


@dataclass(frozen=True)
class Prediction:
    """
    What is predicted at one position.

    Attributes:
        position (`int`):
            Position of the last token that was read, from 0.
        text (`str`):
            Its text.
        candidates (`list[Candidate]`):
            The most probable next tokens, the best first.
        actual ([`Candidate`] or `None`):
            The token that follows; `None` where that is not known.
    """

    position: int
    text: str
    candidates: list[Candidate]
    actual: Candidate | None


@torch.no_grad()
def top_predictions(
    model: nn.Module,
    tokenizer,
    ids: Sequence[int],
    k: int = 10,
    every_position: bool = False,
    next_id: int | None = None,
) -> list[Prediction]:
    """
    The most probable next tokens of a prompt.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A causal LM in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        ids (`Sequence[int]` of length T):
            Token ids of the prompt.
        k (`int`, *optional*, defaults to `10`):
            Candidates a position; at most V are given.
        every_position (`bool`, *optional*, defaults to `False`):
            Whether to predict at each position, and not at the last one only.
        next_id (`int`, *optional*):
            The token that follows the prompt, where it is known.

    Returns:
        `list[Prediction]`: one for each position.

    Raises:
        `ValueError`: if the prompt has no token, `k` is below 1, or the model's logits are not finite.

    Example:

    ```python
    >>> prediction = top_predictions(model, tokenizer, tokenizer("Once upon a").input_ids, k=3)[-1]
    >>> [(candidate.text, candidate.probability) for candidate in prediction.candidates]
    ```
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if len(ids) == 0:
        raise ValueError("The prompt has no token, so there is nothing to predict from. Give a longer one.")
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0].float()
    following = [*ids[1:], next_id]
    predictions = []
    for position in range(len(ids)) if every_position else [len(ids) - 1]:
        row = logits[position]
        if not torch.isfinite(row.max()):
            raise ValueError(f"The logits at position {position} are not finite. Check the model's weights.")
        candidates = _candidates(row, row.topk(min(k, len(row))).indices.tolist(), tokenizer)
        after = following[position]
        actual = None if after is None else _candidates(row, [after], tokenizer)[0]
        predictions.append(Prediction(position, tokenizer.decode([ids[position]]), candidates, actual))
    return predictions


def prediction_table(title: str, predictions: Sequence[Prediction]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table of a prompt. Tokens stand in quotes, what cannot be printed escaped."""

    def cell(candidate):
        return f"{candidate.text!r} {candidate.probability:.3f}"

    rows = []
    for prediction in predictions:
        actual = prediction.actual
        rows.append(
            [
                str(prediction.position),
                repr(prediction.text),
                "-" if actual is None else cell(actual),
                "-" if actual is None else str(actual.rank),
                ", ".join(map(cell, prediction.candidates)),
            ]
        )
    return title, ["position", "after", "actual next", "rank", "most probable next tokens"], rows


def _candidates(logits: torch.Tensor, ids: Sequence[int], tokenizer) -> list[Candidate]:
    """Tokens with their probability and rank under logits `(V,)`."""
    probabilities = logits.softmax(-1)
    # Ranked by the logits: probabilities far down are all 0 in float32
    ranks = [1 + int((logits > logits[index]).sum()) for index in ids]
    return [
        Candidate(index, tokenizer.decode([index]), probabilities[index].item(), rank)
        for index, rank in zip(ids, ranks)
    ]
