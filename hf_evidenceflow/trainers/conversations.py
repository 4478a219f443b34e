"""The thinking of rollouts of several turns: what each recorded, at its place in the completion.

TRL generates a turn from the prompt, the completion so far and what tools said, without telling which row it goes on
with: its tokens do. Between turns stand tokens that were read as text, with state 0 and mask `False`.

Shapes: B rows, C completion tokens, K tokens behind the prompt, H hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch

from ..models.thinking.thinking_rollout import ThinkingRollout


# What stands at tokens that no turn wrote
_FILL = {"states": 0, "mask": False, "embeds_ratio": 1, "gate": 0, "hidden_ratio": 0, "logps": 0}
_FILL |= {"log_density": 0, "drawn": -torch.inf, "drawn_ids": 0, "choice": -1}


@dataclass
class Conversation:
    """
    A row.

    Args:
        ids (`list[int]`): prompt and completion so far.
        prompt_length (`int`): tokens of the prompt.
        turns (`list[tuple[int, dict[str, torch.Tensor]]]`, *optional*):
            Place of each turn in the completion, and the fields of its rollout, of shape `(tokens of the turn, ...)`.
    """

    ids: list[int]
    prompt_length: int
    turns: list[tuple[int, dict[str, torch.Tensor]]] = field(default_factory=list)

    def add(self, prompt: list[int], completion: list[int], rollout: ThinkingRollout, row: int) -> None:
        """Append what a call recorded of its row, which goes on with `prompt`."""
        recorded = {name: value[row, : len(completion)] for name, value in _fields(rollout)}
        self.turns.append((len(prompt) - self.prompt_length, recorded))
        self.ids = [*prompt, *completion]

    def write(self, name: str, target: torch.Tensor) -> None:
        """Write a field into `target` `(tokens, ...)`, whose first one is the first of the completion."""
        for place, recorded in self.turns:
            value = recorded[name][: max(len(target) - place, 0)]
            target[place : place + len(value)] = value


class Conversations:
    """
    The rows of a batch while they are rolled out.

    Example:

    ```python
    >>> conversations = Conversations()
    >>> rows = conversations.of(prompt_ids)
    >>> thoughts = prompt_thinking(rows, prompt_ids)  # for `generate`
    >>> for index, row in enumerate(rows):
    ...     row.add(prompt_ids[index], completion_ids[index], rollout, index)
    >>> conversations.joined(all_prompt_ids, all_completion_ids)
    ```
    """

    def __init__(self):
        self._rows: list[Conversation] = []

    def of(self, prompt_ids: list[list[int]]) -> list[Conversation]:
        """
        The rows that a turn goes on with; in the first one they begin.

        Raises:
            `RuntimeError`: if a prompt does not go on with a row, or not in the order of the rows.
        """
        if not self._rows:
            self._rows = [Conversation(list(ids), len(ids)) for ids in prompt_ids]
            return self._rows
        waiting = iter(self._rows)  # in order; rows with the same tokens have the same states
        return [self._next(waiting, ids) for ids in prompt_ids]

    def _next(self, waiting: Iterator[Conversation], ids: list[int]) -> Conversation:
        for row in waiting:
            if ids[: len(row.ids)] == row.ids:
                return row
        raise RuntimeError(
            "A turn does not go on with the completion of a row, so that the thinking states of its tokens are not "
            "known: something changed the tokens between the turns. Set the model's `thinking_mode` to 'none', or "
            "leave out the tools."
        )

    def joined(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> ThinkingRollout:
        """The rollout of whole completions, which may be cut off in their last turn."""
        texts = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        rows = [self._holding(text, index) for index, text in enumerate(texts)]
        length = max(map(len, completion_ids))
        joined = {}
        for name, value in rows[0].turns[0][1].items():
            target = value.new_full((len(rows), length, *value.shape[1:]), _FILL[name])
            for row, completion, part in zip(rows, completion_ids, target, strict=True):
                row.write(name, part[: len(completion)])
            joined[name] = target
        return ThinkingRollout(**joined)

    def _holding(self, text: list[int], index: int) -> Conversation:
        """The row with this text; of rows that were alike for some turns the next one may have been gone on with."""
        for row in (self._rows[index], *self._rows):
            if row.ids[: len(text)] == text:
                return row
        raise RuntimeError(
            f"The completion of row {index} is not what was rolled out: something changed its tokens, and their "
            "thinking states are not known. Set the model's `thinking_mode` to 'none', or leave that out."
        )


def prompt_thinking(rows: list[Conversation], prompt_ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """
    `thinking_states` `(B, K, H)` and `thinking_mask` `(B, K)` of prompts that hold turns, right-aligned, for
    `generate`; nothing before the first turn.
    """
    if not rows[0].turns:
        return {}
    counts = [len(ids) - row.prompt_length for row, ids in zip(rows, prompt_ids, strict=True)]
    thoughts = {}
    for name in ("states", "mask"):
        value = rows[0].turns[0][1][name]
        target = value.new_zeros(len(rows), max(counts), *value.shape[1:])
        for row, count, part in zip(rows, counts, target, strict=True):
            row.write(name, part[len(part) - count :])
        thoughts[f"thinking_{name}"] = target
    return thoughts


def _fields(rollout: ThinkingRollout) -> list[tuple[str, torch.Tensor]]:
    return [(each.name, value) for each in fields(rollout) if (value := getattr(rollout, each.name)) is not None]
