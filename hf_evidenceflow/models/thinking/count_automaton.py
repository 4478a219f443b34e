"""Ends thinking after a number of tokens: takes the place of the automaton that finds the answer marker."""

import torch


class CountAutomaton:
    """
    Counts the tokens of a completion: the first `count` think, whatever they are. A state is the number of tokens
    seen, at most `count + 1`, which is `found`. Used as [`MarkerAutomaton`] is, without a tokenizer.
    """

    def __init__(self, count: int):
        self.count = count
        self.found = count + 1

    def step(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Next states of shape `(B,)`, int64, from states and token ids of shape `(B,)`."""
        return (state + 1).clamp(max=self.found)

    def may_think_next(self, state: torch.Tensor) -> torch.Tensor:
        """Whether the token behind states `(B,)` is a thought, `(B,)`."""
        return state < self.count
