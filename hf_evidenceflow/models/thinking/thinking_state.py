"""The thinking of a call's rows: one state machine for the stock decoding loop and for the rollout engine.

At each step a loop asks for the states behind the scores (`next_states`), draws tokens and tells them (`observe`,
which answers whether the rows still think), and feeds tokens and states in the next pass (`inputs`). A loop that
decodes some of the call's rows passes their numbers. What it records is its own.

Shapes: R rows of the call, n rows at hand, t tokens, H hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F

from .intervention import StateIntervention
from .thinking_methods import THINKING_METHODS
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
    How far each row is: `thinking` `(R,)`, until its answer marker, its last thought or its end, and `marker_state`
    `(R,)`, the state of the automaton.

    Args:
        mode (`str`): of [`THINKING_METHODS`], not `"none"`.
        embedding (`torch.Tensor` of shape `(V, H)`, *optional*): input embedding matrix, where states average it.
        automaton ([`MarkerAutomaton`] or [`CountAutomaton`], *optional*):
            Finds the end of the thinking phase; `None`: all of it thinks.
        rows (`int`): rows R.
        device (`torch.device`): device of the token ids.
        policy (`str`, *optional*, defaults to `"sample"`): `token_policy` of the config.
        placeholder (`int`, *optional*): id of the token that stands for thoughts.
        intervention (`str`, *optional*): kind of a [`ThinkingIntervention`].
        groups (`torch.Tensor` of shape `(R,)`, *optional*): number of each row's prompt, for an intervention.
        approximate (`bool`, *optional*, defaults to `False`): on a CPU, average the likely tokens only.
    """

    def __init__(
        self,
        mode,
        embedding,
        automaton,
        rows: int,
        device: torch.device,
        policy="sample",
        placeholder=None,
        intervention=None,
        groups=None,
        approximate=False,
    ):
        self.mode, self.embedding, self.automaton = mode, embedding, automaton
        self.method = THINKING_METHODS[mode]
        self.policy, self.placeholder = policy, placeholder
        self.off = intervention == "off"
        self.fuses = self.method.fuses and not self.off
        self.intervene = None if intervention in (None, "off") else StateIntervention(intervention, groups)
        self.recorder = ThinkingRecorder()
        self.thinking = torch.ones(rows, dtype=torch.bool, device=device)
        self.marker_state = torch.zeros(rows, dtype=torch.long, device=device)
        self.on_host = device.type == "cpu"
        self.mean = embedding.mean(0) if approximate and self.on_host and self.method.reads_distribution else None

    def resume(self, marker_state: torch.Tensor) -> None:
        """Go on behind tokens that ended in these states `(R,)` of the automaton."""
        if self.automaton is not None:
            self.marker_state = marker_state
            self.thinking = marker_state != self.automaton.found

    def next_states(self, scores, hidden, probs=None, rows=None) -> torch.Tensor:
        """
        States `(n, H)` of the tokens that are about to be drawn; 0 where there is none, and weighted embeddings on a
        CPU in rows that do not think.

        Args:
            scores (`torch.Tensor` of shape `(n, V)`): processed scores.
            hidden (`torch.Tensor` of shape `(n, H)`): last hidden states behind them.
            probs (`torch.Tensor` of shape `(n, V)`, *optional*): the softmax of the scores, if it is there.
            rows (`torch.Tensor` of shape `(n,)`, *optional*): the rows at hand; by default all.
        """
        if not self.fuses:
            return torch.zeros_like(hidden)
        states = self._states(scores, hidden, probs, rows)
        if self.intervene is None:
            return states
        needed = self._at_hand(rows).nonzero().squeeze(1)
        return states.index_put((needed,), self.intervene(states[needed], needed if rows is None else rows[needed]))

    def _at_hand(self, rows):
        return self.thinking if rows is None else self.thinking[rows]

    def _states(self, scores, hidden, probs, rows):
        if not self.method.reads_distribution:
            return hidden
        if not self.on_host:  # a choice of rows would wait for the device
            return self._weighted(scores.softmax(-1) if probs is None else probs)
        needed = self._at_hand(rows).nonzero().squeeze(1)
        states = self.embedding.new_zeros(len(scores), self.embedding.shape[1])
        if len(needed):
            states[needed] = self._weighted(scores[needed].softmax(-1) if probs is None else probs[needed])
        return states

    def _weighted(self, probs):
        if self.mean is None:
            states = soft_state(probs, self.embedding)
        else:
            states = sparse_soft_state(probs, self.embedding, self.mean)
        if self.method.source == "unit_mean_embedding":
            return states / probs.norm(dim=-1, keepdim=True).to(states.dtype)
        return states

    def restrict(self, scores: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """
        The scores `(n, V)` that the next tokens are drawn from: where that is a thought, the token policy
        `"placeholder"` leaves only the placeholder, `"argmax"` only the likeliest token. `rows` as in `next_states`.
        """
        if self.policy == "sample":
            return scores
        thought = self._at_hand(rows)
        if self.automaton is not None:
            state = self.marker_state if rows is None else self.marker_state[rows]
            thought = thought & self.automaton.may_think_next(state)
        if self.policy == "argmax":
            tokens = scores.argmax(-1, keepdim=True)
        else:
            tokens = torch.full((len(scores), 1), self.placeholder, device=scores.device)
        # 0: a processor may have ruled the placeholder out
        only = torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)
        return torch.where(thought[:, None], only, scores)

    def observe(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """
        Whether each row's token `(n,)`, which it drew, is a thought, `(n,)`; `rows` as in `next_states`. Under the
        intervention `"off"` none is.
        """
        thinking = self._observe(tokens, rows)
        return torch.zeros_like(thinking) if self.off else thinking

    def _observe(self, tokens, rows):
        thinking = self._at_hand(rows)
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
        if self.fuses and (not self.on_host or self.automaton is None or mask.any()):
            inputs |= {"thinking_states": states, "thinking_mask": mask}
        return inputs
