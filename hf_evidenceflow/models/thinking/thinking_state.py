"""The thinking of a call's rows: one state machine for the stock decoding loop and for the rollout engine.

At each step a loop asks for the states behind the scores (`next_states`), draws tokens and tells them (`observe`,
which answers whether the rows still think), and feeds tokens and states in the next pass (`inputs`). A loop that
decodes some of the call's rows passes their numbers. What it records is its own.

Shapes: R rows of the call, n rows at hand, t tokens, H hidden size, V vocabulary.
"""

import torch

from .intervention import StateIntervention
from .thinking_density import choice_log_density
from .thinking_schedules import HeadRule


class ThinkingRecorder:
    """
    Carries out of a forward pass: `hidden` `[n, H]` at the last position; `stats` `[n, 3]` (a, r, sqrt(1 - a^2)) or
    `None` where nothing was fused.
    """

    hidden: torch.Tensor | None = None
    stats: torch.Tensor | None = None


_CHOICE_STREAM = 0  # of [`RowDraws`]


def token_logps(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probabilities `(n,)` of tokens `(n,)` under raw logits `(n, V)` at a temperature."""
    return (logits / temperature).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def _take(tensor, rows):
    return tensor if rows is None else tensor[rows]


def _put(tensor, rows, values):
    """The tensor with these rows in it; without rows a new one, since the old one may be recorded."""
    if rows is None:
        return values
    tensor[rows] = values
    return tensor


class ThinkingState:
    """
    How far each row is: `thinking` `(R,)`, until its answer marker, its last thought or its end, `marker_state`
    `(R,)`, the state of the automaton, and `memory` `(R, M)`, that of the rule.

    Args:
        mode (`str`): of [`THINKING_METHODS`], not `"none"`.
        source ([`StateSource`]): the states.
        automaton ([`MarkerAutomaton`] or [`CountAutomaton`], *optional*):
            Finds the end of the thinking phase; `None`: all of it thinks.
        rows (`int`): rows R.
        device (`torch.device`): device of the token ids.
        policy (`str`, *optional*, defaults to `"sample"`): `token_policy` of the config.
        placeholder (`int`, *optional*): id of the token that stands for thoughts.
        intervention (`str`, *optional*): kind of a [`ThinkingIntervention`].
        groups (`torch.Tensor` of shape `(R,)`, *optional*): number of each row's prompt, for an intervention.
        rule ([`EntropyRule`] or another, *optional*): chooses which tokens think; `None`: all until the end.
        last_tokens (`torch.Tensor` of shape `(R,)`, *optional*): last tokens of the prompts, for the rule.
        draws ([`RowDraws`], *optional*): of a call that samples, where it draws more than tokens.
        noise ([`StateNoise`], *optional*): draws the states.
    """

    def __init__(
        self,
        mode,
        source,
        automaton,
        rows: int,
        device: torch.device,
        policy="sample",
        placeholder=None,
        intervention=None,
        groups=None,
        rule=None,
        last_tokens=None,
        draws=None,
        noise=None,
    ):
        self.mode, self.source, self.automaton = mode, source, automaton
        self.off = intervention == "off"
        self.fuses = source.method.fuses and not self.off
        self.policy, self.placeholder = policy, placeholder
        self.intervene = None if intervention in (None, "off") else StateIntervention(intervention, groups)
        self.recorder = ThinkingRecorder()
        self.thinking = torch.ones(rows, dtype=torch.bool, device=device)
        self.marker_state = torch.zeros(rows, dtype=torch.long, device=device)
        self.on_host = device.type == "cpu"
        self.rule, self.draws, self.noise = rule, draws, None if self.off else noise
        self.memory = torch.zeros(rows, 0, device=device) if rule is None else rule.start(rows, last_tokens, device)
        self.steps = torch.zeros(rows, dtype=torch.long, device=device)
        self.all_rows = torch.arange(rows, device=device)
        self.decided = None  # (n,), of the rows at hand
        self.drawn: dict[str, torch.Tensor] = {}

    @property
    def place(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the rows are, `marker_state` and `memory`."""
        return self.marker_state, self.memory

    def resume(self, place: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Go on behind tokens that ended at a `place`."""
        self.memory = place[1]
        if self.automaton is not None:
            self.marker_state = place[0]
            self.thinking = place[0] != self.automaton.found

    def next_states(self, scores, hidden, probs=None, rows=None) -> torch.Tensor:
        """
        States `(n, H)` of the tokens that are about to be drawn; 0 where there is none, and weighted embeddings on a
        CPU in rows that do not think. Decides, where a rule does, whether the tokens are thoughts.

        Args:
            scores (`torch.Tensor` of shape `(n, V)`): processed scores.
            hidden (`torch.Tensor` of shape `(n, H)`): last hidden states behind them.
            probs (`torch.Tensor` of shape `(n, V)`, *optional*): the softmax of the scores, if it is there.
            rows (`torch.Tensor` of shape `(n,)`, *optional*): the rows at hand; by default all.
        """
        self.drawn = {}
        if self.rule is not None:
            probs = scores.softmax(-1) if probs is None else probs
            self._decide(probs, hidden, rows)
        if not self.fuses:
            return torch.zeros_like(hidden)
        states = self._states(scores, hidden, probs, rows)
        if self.intervene is None:
            return states
        needed = _take(self.thinking, rows).nonzero().squeeze(1)  # also where a rule says no: others get their states
        return states.index_put((needed,), self.intervene(states[needed], needed if rows is None else rows[needed]))

    def _decide(self, probs, hidden, rows):
        memory = _take(self.memory, rows)
        if self.draws is None or not isinstance(self.rule, HeadRule):
            self.decided, memory = self.rule.decide(memory, probs, hidden)
        else:
            rows_at_hand = self.all_rows if rows is None else rows
            uniform = self.draws.uniform(rows_at_hand, _take(self.steps, rows), 1, _CHOICE_STREAM)[:, 0]
            self.decided, memory = self.rule.decide(memory, probs, hidden, uniform)
            self.drawn["choice"] = self.decided.long()
        self.memory = _put(self.memory, rows, memory)

    def _at_hand(self, rows):
        thinking = _take(self.thinking, rows)
        return thinking if self.rule is None else thinking & self.decided

    def _states(self, scores, hidden, probs, rows):
        if self.noise is not None:
            rows_at_hand = self.all_rows if rows is None else rows
            states, drawn = self.noise(scores, hidden, probs, rows_at_hand, _take(self.steps, rows))
            self.drawn |= drawn
            return states
        # A choice of rows would wait for an accelerator
        if not (self.on_host and self.source.reads_scores):
            return self.source(scores, hidden, probs)
        needed = self._at_hand(rows) if self.intervene is None else _take(self.thinking, rows)
        needed = needed.nonzero().squeeze(1)
        states = self.source.embedding.new_zeros(len(scores), self.source.embedding.shape[1])
        if len(needed):
            hidden = None if hidden is None else hidden[needed]
            states[needed] = self.source(scores[needed], hidden, None if probs is None else probs[needed])
        return states

    def restrict(self, scores: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """
        The scores `(n, V)` that the next tokens are drawn from: where that is a thought, the token policy
        `"placeholder"` leaves only the placeholder, `"argmax"` only the likeliest token, `"drawn"` that of the largest
        drawn weight. `rows` as in `next_states`.
        """
        if self.policy == "sample" or (self.policy == "drawn" and "drawn" not in self.drawn):
            return scores
        thought = self._at_hand(rows)
        if self.automaton is not None:
            thought = thought & self.automaton.may_think_next(_take(self.marker_state, rows))
        if self.policy == "argmax":
            tokens = scores.argmax(-1, keepdim=True)
        elif self.policy == "drawn":
            tokens = self.drawn["drawn_ids"].gather(1, self.drawn["drawn"].argmax(-1, keepdim=True))
        else:
            tokens = torch.full((len(scores), 1), self.placeholder, device=scores.device)
        # 0: a processor may have ruled the placeholder out
        only = torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)
        return torch.where(thought[:, None], only, scores)

    def observe(self, tokens: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """
        Whether each row's token `(n,)`, which it drew, is a thought, `(n,)`; `rows` as in `next_states`. Under the
        intervention `"off"` none is. `drawn` holds what was drawn besides the tokens, to be recorded.
        """
        going = self._observe(tokens, rows)
        thinking = going
        if self.rule is not None:
            thinking, memory = self.rule.after(_take(self.memory, rows), tokens, self.decided)
            thinking = thinking & going
            self.memory = _put(self.memory, rows, memory)
        if self.draws is not None:
            self.steps = _put(self.steps, rows, _take(self.steps, rows) + 1)
        thinking = torch.zeros_like(thinking) if self.off else thinking
        self._close_draws(going, thinking)
        return thinking

    def _close_draws(self, going, thinking):
        """Leave in `drawn` what had an effect."""
        drawn = self.drawn
        if "log_density" in drawn:
            drawn["log_density"] = torch.where(thinking, drawn["log_density"], 0.0)
        if "drawn" in drawn:
            drawn["drawn"] = drawn["drawn"].masked_fill(~thinking[:, None], -torch.inf)
        if "choice" in drawn:
            drawn["choice"] = drawn["choice"].masked_fill(~going, -1)
            density = choice_log_density(self.rule.logits, drawn["choice"]).float()
            drawn["log_density"] = drawn.get("log_density", 0.0) + density

    def _observe(self, tokens, rows):
        thinking = _take(self.thinking, rows)
        if self.automaton is None:
            return thinking
        state = self.automaton.step(_take(self.marker_state, rows), tokens)
        thinking = thinking & (state != self.automaton.found)
        self.marker_state = _put(self.marker_state, rows, state)
        self.thinking = _put(self.thinking, rows, thinking)
        return thinking

    def finish(self, done: torch.Tensor) -> None:
        """End the thinking of rows `(R,)` that stay in the batch after their last token."""
        self.thinking = self.thinking > done  # and not, in one kernel

    def inputs(self, states: torch.Tensor, mask: torch.Tensor) -> dict:
        """Keyword arguments of the pass over tokens with states `(n, t, H)`, fused where the mask `(n, t)` is set."""
        inputs = {"thinking_recorder": self.recorder}
        # On a CPU gates that nothing reads are left out
        if self.fuses and (not self.on_host or mask.any()):
            inputs |= {"thinking_states": states, "thinking_mask": mask}
        return inputs
