"""The thinking of a rollout's rows: phase, states and what is recorded of them.

Shapes: R rows of the whole call, n rows at hand, C completion tokens, H hidden size, V vocabulary.
"""

import torch

from ..models.thinking.generation_thinking import ThinkingRecorder, weighted_states
from .records import RolloutRecords


class ThinkingRows:
    """
    Args:
        model ([`ThinkingGenerationMixin`]): model in a mode other than `none`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): as for `generate` of a thinking model.
        rows (`int`): rows R of the call.
        device (`torch.device`): device of the token ids.
    """

    def __init__(self, model, tokenizer, rows: int, device: torch.device):
        self.mode = model.config.thinking_mode
        self.embedding = model.get_input_embeddings().weight
        self.automaton = model._automaton(tokenizer, device)
        self.recorder = ThinkingRecorder()
        self.marker_state = torch.zeros(rows, dtype=torch.long, device=device)
        self.thinking = torch.ones(rows, dtype=torch.bool, device=device)
        on_host = device.type == "cpu" and self.mode != "projection"
        self.mean = self.embedding.mean(0) if on_host else None
        self.fill = {
            "states": ((model.config.hidden_size,), model.dtype, 0.0),
            "mask": ((), torch.bool, False),
            "embeds_ratio": ((), torch.float32, 1.0),
            "gate": ((), torch.float32, 0.0),
            "hidden_ratio": ((), torch.float32, 0.0),
        }

    def states(self, rows, scores, probs, hidden) -> torch.Tensor:
        """
        States `(n, H)` of the tokens that are drawn from processed scores `(n, V)` (`probs`: their softmax, if it is
        there) behind hidden states `(n, H)`.
        """
        if self.mode == "projection":
            return hidden
        return weighted_states(self.mode, scores, self.thinking[rows], self.embedding, self.mean, probs)

    def observe(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Whether each row still thinks at the token `(n,)` that it drew."""
        if self.automaton is not None:
            state = self.automaton.step(self.marker_state[rows], tokens)
            self.marker_state[rows] = state
            self.thinking[rows] = state != self.automaton.found
        return self.thinking[rows]

    def inputs(self, records: RolloutRecords, rows: torch.Tensor, steps: torch.Tensor) -> dict:
        """Keyword arguments of the pass over the tokens recorded at `steps`."""
        mask = records.tensors["mask"][rows, steps]
        inputs = {"thinking_recorder": self.recorder}
        if mask.device.type != "cpu" or mask.any():
            inputs["thinking_states"] = records.tensors["states"][rows, steps][:, None]
            inputs["thinking_mask"] = mask[:, None]
        return inputs

    def record_stats(self, records: RolloutRecords, rows: torch.Tensor, steps: torch.Tensor, last_step: int) -> None:
        """Write the gates of the tokens fed last, where they were fused."""
        stats = self.recorder.stats
        if stats is None:
            return
        unfused = stats.new_tensor([1.0, 0.0, 0.0])
        a, gate, hidden_ratio = stats.where(records.tensors["mask"][rows, steps][:, None], unfused).unbind(-1)
        records.write(rows, steps, last_step, embeds_ratio=a, gate=gate, hidden_ratio=hidden_ratio)
