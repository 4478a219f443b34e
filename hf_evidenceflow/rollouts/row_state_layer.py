"""Layers with a state of their own in rows that share prompts: a convolution, linear attention.

Shapes: n rows, m prompts.
"""

import torch
from transformers.cache_utils import LinearAttentionLayer


class RowStateLayer(LinearAttentionLayer):
    """
    The states of one layer, `(n, ...)`, by the names and numbers that transformers has for them; a row's is copied
    from that of its prompt.
    """

    def __init__(self, source: LinearAttentionLayer):
        super().__init__(source.number_of_states)
        vars(self).update(
            {name: dict(value) if isinstance(value, dict) else value for name, value in vars(source).items()}
        )
        self.prompt_states = {
            (name, number): states[:0]
            for name in ("conv_states", "recurrent_states")
            for number, states in vars(source)[name].items()
            if states is not None
        }
        for name, number in self.prompt_states:
            vars(self)[name][number] = vars(source)[name][number][:0]

    def put_prompts(self, places: slice, source: LinearAttentionLayer) -> None:
        """Store the states of prompts, behind those of the places before."""
        for (name, number), states in self.prompt_states.items():
            new = vars(source)[name][number]
            self.prompt_states[name, number] = torch.cat([states[: places.start], new])

    def set_rows(self, layout) -> None:
        """Keep the states of rows that were there, and copy those of rows that came, after [`SharedPromptLayout`]."""
        for (name, number), prompts in self.prompt_states.items():
            states = vars(self)[name][number][: layout.num_rows]
            vars(self)[name][number] = torch.cat([states, prompts[layout.prompts[len(states) :]]])

    def move(self, buffers: str, targets: list[int], sources: list[int]) -> None:
        """Copy rows (`buffers=""`) or prompts (`"prompt_"`) from `sources` to `targets`."""
        for (name, number), prompts in self.prompt_states.items():
            states = prompts if buffers else vars(self)[name][number]
            states[targets] = states[sources]
