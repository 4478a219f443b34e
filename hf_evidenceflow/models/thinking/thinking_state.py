"""The thinking of a call's rows: one state machine for the stock decoding loop and for the rollout engine.

At each step a loop asks for the states behind the scores (`next_states`), draws tokens and tells them (`observe`,
which answers whether the rows still think), and feeds tokens and states in the next pass (`inputs`). A loop that
decodes some of the call's rows passes their numbers. What it records is its own.

Shapes: R rows of the call, n rows at hand, t tokens, H hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F

from .thinking_residual import soft_state


class ThinkingRecorder:
    """
    Carries out of a forward pass: `hidden` `[n, H]` at the last position; `stats` `[n, 3]` (a, r, sqrt(1 - a^2)) or
    `None` where nothing was fused.
    """

    hidden: torch.Tensor | None = None
    stats: torch.Tensor | None = None


# A token below this probability is cut from the weighted embedding; a row that would lose more than this is not cut
TOKEN_CUT = 1e-4
MAX_TAIL = 0.1


def sparse_soft_state(probs: torch.Tensor, embedding: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """
    [`soft_state`] from the likely tokens, with the mean embedding in place of each unlikely one (p < 1e-4).

    Rows whose unlikely tokens hold more than 0.1 of the probability are computed exactly. In the others the sum is off
    by at most that tail times the largest distance of an embedding from the mean; the measured error of the state is
    below 0.5 %. Recorded is the state that was used, so training is exact. For CPUs: the choice reads values on the
    host, and on an accelerator the product is cheap.

    Args:
        probs (`torch.Tensor` of shape `(n, V)`), embedding (`torch.Tensor` of shape `(V, H)`): as in [`soft_state`].
        mean (`torch.Tensor` of shape `(H,)`): mean of the embeddings.
    """
    likely = probs >= TOKEN_CUT
    tail = 1 - (probs * likely).sum(-1)
    flat = tail > MAX_TAIL
    if flat.all():
        return soft_state(probs, embedding)
    if flat.any():
        likely &= ~flat[:, None]
    rows, tokens = likely.nonzero(as_tuple=True)
    weighted = F.embedding_bag(
        tokens,
        embedding,
        torch.searchsorted(rows, torch.arange(len(probs))),
        mode="sum",
        per_sample_weights=probs[rows, tokens].to(embedding.dtype),
    )
    state = weighted + tail[:, None].to(mean.dtype) * mean
    if flat.any():
        state[flat] = soft_state(probs[flat], embedding)
    return state


def token_logps(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities `(n,)` of tokens `(n,)` under raw logits `(n, V)` at a temperature."""
    return (logits / temperature).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


class ThinkingState:
    """
    How far each row is: `thinking` `(R,)`, until its answer marker or its end, and `marker_state` `(R,)`, the place in
    the marker.

    Args:
        mode (`str`): `"projection"`, `"embedding"` or `"soft"`.
        embedding (`torch.Tensor` of shape `(V, H)`, *optional*): input embedding matrix; `projection` needs none.
        automaton ([`MarkerAutomaton`], *optional*): finds the end of the thinking phase; `None`: all of it thinks.
        rows (`int`): rows R.
        device (`torch.device`): device of the token ids.
    """

    def __init__(self, mode, embedding, automaton, rows: int, device: torch.device):
        self.mode, self.embedding, self.automaton = mode, embedding, automaton
        self.recorder = ThinkingRecorder()
        self.thinking = torch.ones(rows, dtype=torch.bool, device=device)
        self.marker_state = torch.zeros(rows, dtype=torch.long, device=device)
        self.on_host = device.type == "cpu"
        self.mean = embedding.mean(0) if self.on_host and mode != "projection" else None

    def resume(self, marker_state: torch.Tensor) -> None:
        """Go on behind tokens that ended in these states `(R,)` of the automaton."""
        if self.automaton is not None:
            self.marker_state = marker_state
            self.thinking = marker_state != self.automaton.found

    def next_states(self, scores, hidden, probs=None, rows=None) -> torch.Tensor:
        """
        States `(n, H)` of the tokens that are about to be drawn; on a CPU weighted embeddings are 0 in rows that do
        not think.

        Args:
            scores (`torch.Tensor` of shape `(n, V)`): processed scores.
            hidden (`torch.Tensor` of shape `(n, H)`): last hidden states behind them.
            probs (`torch.Tensor` of shape `(n, V)`, *optional*): the softmax of the scores, if it is there.
            rows (`torch.Tensor` of shape `(n,)`, *optional*): the rows at hand; by default all.
        """
        if self.mode == "projection":
            return hidden
        if not self.on_host:  # a choice of rows would wait for the device
            return self._weighted(scores.softmax(-1) if probs is None else probs)
        needed = (self.thinking if rows is None else self.thinking[rows]).nonzero().squeeze(1)
        states = self.embedding.new_zeros(len(scores), self.embedding.shape[1])
        if len(needed):
            states[needed] = self._weighted(scores[needed].softmax(-1) if probs is None else probs[needed])
        return states

    def _weighted(self, probs):
        if self.on_host:
            states = sparse_soft_state(probs, self.embedding, self.mean)
        else:
            states = soft_state(probs, self.embedding)
        return states / probs.norm(dim=-1, keepdim=True).to(states.dtype) if self.mode == "embedding" else states

    def observe(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Whether each row still thinks, `(n,)`, at the token `(n,)` that it drew; `rows` as in `next_states`."""
        thinking = self.thinking if rows is None else self.thinking[rows]
        if self.automaton is None:
            return thinking
        state = self.automaton.step(self.marker_state if rows is None else self.marker_state[rows], tokens)
        thinking = thinking & (state != self.automaton.found)
        if rows is None:
            self.marker_state, self.thinking = state, thinking  # the old ones may be recorded
        else:
            self.marker_state[rows], self.thinking[rows] = state, thinking
        return thinking

    def finish(self, done: torch.Tensor) -> None:
        """End the thinking of rows `(R,)` that stay in the batch after their last token."""
        self.thinking = self.thinking > done  # and not, in one kernel

    def inputs(self, states: torch.Tensor, mask: torch.Tensor) -> dict:
        """Keyword arguments of the pass over tokens with states `(n, t, H)`, fused where the mask `(n, t)` is set."""
        inputs = {"thinking_recorder": self.recorder}
        # On a CPU gates that nothing reads are left out
        if not self.on_host or self.automaton is None or mask.any():
            inputs |= {"thinking_states": states, "thinking_mask": mask}
        return inputs
