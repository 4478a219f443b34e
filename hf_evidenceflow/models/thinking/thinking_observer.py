"""Watches the stock decoding loop: shows its scores and tokens to a [`ThinkingState`], and records what comes of them.

Shapes: B rows, P prompt tokens, C completion tokens, H hidden size.
"""

import torch
from transformers.generation import StoppingCriteriaList

from .continuation import ThinkingContinuation
from .thinking_rollout import UNFUSED, ThinkingRollout
from .thinking_state import ThinkingState, token_logps


class ThinkingObserver:
    """
    Shows the stock loop's scores and tokens to a [`ThinkingState`] and keeps what comes of them.

    Args:
        thinking ([`ThinkingState`]): of the call's rows.
        keep (`bool`): whether all states are kept, or only the last.
        logps_temperature (`float`, *optional*): if given, log-probabilities are recorded.
        continuation ([`ThinkingContinuation`], *optional*): of the completion that the cache ends with.
        prompt ([`PromptThinking`], *optional*): thoughts that the prompt holds.
    """

    def __init__(self, thinking: ThinkingState, keep: bool, logps_temperature=None, continuation=None, prompt=None):
        self.thinking, self.keep = thinking, keep
        self.logps_temperature, self.continuation, self.prompt = logps_temperature, continuation, prompt
        self.states, self.masks, self.stats, self.logps, self.places, self.drawn = [], [], [], [], [], []
        self.raw_scores = None

    def observe_logits(self, input_ids, scores):
        """First logits processor: keeps the raw scores for the log-probability of the token."""
        self.raw_scores = scores.clone()  # a processor may write in place
        return scores

    def observe_scores(self, input_ids, scores):
        """Last logits processor: from what it sees the state comes; from what it returns the token is drawn."""
        recorder = self.thinking.recorder
        if self.masks:
            self._push(self.stats, recorder.stats)
        self._push(self.states, self.thinking.next_states(scores, recorder.hidden))
        return self.thinking.restrict(scores)

    def observe_tokens(self, input_ids, done):
        """Called by the stopping criteria with the new token appended, [B, P + t], and the rows that it ends, [B]."""
        tokens = input_ids[:, -1]
        self._push(self.masks, self.thinking.observe(tokens))
        self._push(self.places, self.thinking.place)
        self._push(self.drawn, self.thinking.drawn)
        if self.logps_temperature is not None:
            self.logps.append(token_logps(self.raw_scores, tokens, self.logps_temperature))
        self.thinking.finish(done)

    def _push(self, items, item):
        if not self.keep:
            items.clear()
        items.append(item)

    def model_inputs(self, length: int) -> dict:
        """Keyword arguments of the next forward pass over the last `length` tokens."""
        if self.masks:
            states, mask = (torch.stack(items[-length:], dim=1) for items in (self.states, self.masks))
            if self.prompt is not None and length > mask.shape[1]:
                states, mask = self.prompt.followed_by(states, mask, length)
            return self.thinking.inputs(states, mask)
        thoughts = None if self.prompt is None else self.prompt.take(length)
        if thoughts is not None:
            return self.thinking.inputs(*thoughts)
        if self.continuation is None:
            return {"thinking_recorder": self.thinking.recorder}
        continuation, self.continuation = self.continuation, None  # the prompt may come in pieces
        return self.thinking.inputs(*continuation.inputs(length))

    def end(self, completions: torch.Tensor, prompt_length: int | None, length: int) -> ThinkingContinuation:
        """What a later call needs to go on: completions `(B, C)`; lengths as in [`ThinkingContinuation`]."""
        count = completions.shape[1]
        last = count - 1 if self.keep else -1  # where stopping is seen late, a token too many was observed
        if prompt_length is None:
            prompt_length = length - (count - 1)
        return ThinkingContinuation(
            self.thinking.mode,
            prompt_length,
            length,
            completions[:, -1].clone(),
            self.states[last],
            self.masks[last],
            self.places[last],
        )

    def rollout(self, length: int) -> ThinkingRollout:
        """What was recorded for the first `length` completion tokens."""
        if length == 0:
            raise ValueError(
                "Nothing was generated, so there are no thinking states to return. Raise `max_new_tokens`."
            )
        states, mask = (torch.stack(items[:length], dim=1) for items in (self.states, self.masks))
        unfused = torch.tensor(UNFUSED, device=mask.device).expand(len(mask), 3)
        # The last token was never fed
        stats = [unfused if each is None else each for each in [*self.stats[: length - 1], None]]
        logps = torch.stack(self.logps[:length], dim=1) if self.logps else None
        drawn = {name: torch.stack([each[name] for each in self.drawn[:length]], dim=1) for name in self.drawn[0]}
        return ThinkingRollout.from_stats(states, mask, torch.stack(stats, dim=1), logps, **drawn)


class ObservedStoppingCriteria(StoppingCriteriaList):
    """Stopping criteria that show each new token to a [`ThinkingObserver`]."""

    def __init__(self, criteria, observer):
        super().__init__(criteria)
        self.observer = observer

    def __call__(self, input_ids, scores, **kwargs):
        done = super().__call__(input_ids, scores, **kwargs)
        self.observer.observe_tokens(input_ids, done)
        return done
