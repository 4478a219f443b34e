"""Thoughts that a prompt holds: a turn of a conversation whose tokens the next one reads with the states they had.

Shapes: B rows, P prompt tokens, K of them that may be thoughts (the last ones), n tokens of a pass, H hidden size.
"""

import torch


class PromptThinking:
    """
    States and mask of the last K prompt tokens, for passes over the prompt, which may come in pieces.

    Args:
        states (`torch.Tensor` of shape `(B, K, H)`), mask (`torch.Tensor` of shape `(B, K)`):
            As a [`ThinkingRollout`] has them, 0 and `False` at tokens that are no thoughts.
        length (`int`): prompt tokens P, padding included.
    """

    def __init__(self, states: torch.Tensor, mask: torch.Tensor, length: int):
        self.states, self.mask, self.waiting = states, mask, length

    @classmethod
    def of(cls, input_ids: torch.Tensor, states, mask, past: int = 0) -> "PromptThinking | None":
        """
        From `thinking_states` and `thinking_mask` of a call for prompts `(B, P)`, or `None` if it has none; `past`
        tokens are in its cache.

        Raises:
            `ValueError`: if there is one without the other, the shapes do not fit, or the cache holds tokens.
        """
        if states is None and mask is None:
            return None
        if states is None or mask is None:
            given, missing = ("mask", "states") if states is None else ("states", "mask")
            raise ValueError(f"`thinking_{given}` of a prompt needs `thinking_{missing}`, got None.")
        rows, length = input_ids.shape
        if states.shape[:2] != mask.shape or len(mask) != rows or not 1 <= mask.shape[1] <= length:
            raise ValueError(
                "`thinking_states` must be [B, K, H] and `thinking_mask` [B, K], of the last K tokens of prompts "
                f"[B, P]; got {tuple(states.shape)} and {tuple(mask.shape)} for `input_ids` of {(rows, length)}."
            )
        if past:
            raise ValueError(
                f"`thinking_states` of a prompt with `past_key_values` of {past} positions, which hold the thoughts "
                "of their tokens already. Leave one of the two out."
            )
        return cls(states, mask.bool(), length)

    def take(self, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """States `(B, n, H)` and mask `(B, n)` of the last n of the next `count` tokens; `None`: they hold none."""
        self.waiting -= count
        end = self.mask.shape[1] - self.waiting
        if end <= 0:
            return None
        columns = slice(max(end - count, 0), end)
        return self.states[:, columns], self.mask[:, columns]

    def followed_by(self, states: torch.Tensor, mask: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """States and mask of the last `count` tokens of prompt and completion `(B, C)`: a loop without a cache."""
        states, mask = torch.cat([self.states.to(states), states], 1), torch.cat([self.mask, mask], 1)
        return states[:, -count:], mask[:, -count:]
