"""What a call of `generate` recorded of its completions, and how a caller further up collects it.

Shapes: B rows, P prompt tokens, C completion tokens, H hidden size.
"""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers.generation import GenerateDecoderOnlyOutput


UNFUSED = (1.0, 0.0, 0.0)  # a, r and sqrt(1 - a^2) of a token that was not fused or not fed


@dataclass
class ThinkingRollout:
    """
    What one call of `generate()` recorded for its completions.

    Args:
        states (`torch.Tensor` of shape `(B, C, H)`):
            State attached to each completion token, in the model's dtype: the last hidden state before the projection
            in mode `projection`, the weighted embedding in modes `embedding` and `soft`.
        mask (`torch.Tensor` of shape `(B, C)`):
            Boolean, `True` where the token's input is fused with its state.
        embeds_ratio (`torch.Tensor` of shape `(B, C)`):
            Mean over H of the weight `a` of the token embedding; 1 where a token was not fused or not fed (the last
            one).
        gate, hidden_ratio (`torch.Tensor` of shape `(B, C)`):
            Means over H of the gate `r` and of `sqrt(1 - a^2)`; 0 where a token was not fused or not fed.
        logps (`torch.Tensor` of shape `(B, C)`, *optional*):
            Log-probabilities of the chosen tokens at `logps_temperature`, before all other processors.
        log_density (`torch.Tensor` of shape `(B, C)`, *optional*):
            Where a call draws more than tokens: the log-density of that, 0 where nothing was drawn. Under Gaussian
            noise `states` holds the draw.
        drawn (`torch.Tensor` of shape `(B, C, K)`), drawn_ids (`torch.Tensor` of shape `(B, C, K)`), *optional*:
            Under Gumbel noise: log-probabilities with noise, and their tokens; `-inf` where nothing was drawn.
        choice (`torch.Tensor` of shape `(B, C)`, *optional*):
            With a learned schedule: 1 where it chose to think, 0 where not to, -1 where thinking was over.
    """

    states: torch.Tensor
    mask: torch.Tensor
    embeds_ratio: torch.Tensor
    gate: torch.Tensor
    hidden_ratio: torch.Tensor
    logps: torch.Tensor | None = None
    log_density: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    drawn_ids: torch.Tensor | None = None
    choice: torch.Tensor | None = None

    @classmethod
    def from_stats(cls, states, mask, stats, logps=None, **drawn) -> "ThinkingRollout":
        """From `stats` `(B, C, 3)`, which are read where the mask is set and are [`UNFUSED`] where not fed."""
        stats = torch.where(mask[..., None], stats, torch.tensor(UNFUSED, device=mask.device))
        return cls(states, mask, *stats.unbind(-1), logps, **drawn)


@dataclass
class GenerateThinkingOutput(GenerateDecoderOnlyOutput):
    """
    [`~transformers.generation.GenerateDecoderOnlyOutput`] with `states`, `mask` and `embeds_ratio` of
    [`ThinkingRollout`]. A call with its `sequences` and `past_key_values` goes on as if the two were one.
    """

    thinking_states: torch.Tensor | None = None
    thinking_mask: torch.Tensor | None = None
    embeds_ratio: torch.Tensor | None = None


@dataclass
class ThinkingCollector:
    """What [`collect_thinking`] asks of the calls inside it."""

    tokenizer: object
    logps_temperature: float | None
    engine: Callable | None
    watcher: Callable | None
    rollouts: list[ThinkingRollout]


_collector: ContextVar[ThinkingCollector | None] = ContextVar("thinking_collector", default=None)


def current_collector() -> ThinkingCollector | None:
    """The collector of the innermost [`collect_thinking`] block of this thread, if there is one."""
    return _collector.get()


@contextmanager
def collect_thinking(
    tokenizer=None,
    logps_temperature: float | None = None,
    engine: Callable | None = None,
    watcher: Callable | None = None,
):
    """
    Collect the [`ThinkingRollout`] of every `generate()` call of a thinking model in this thread, whoever makes it.
    For callers that cannot pass `tokenizer=` and `return_dict_in_generate=True`, such as a trainer's rollout.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Used by calls that bring no tokenizer.
        logps_temperature (`float`, *optional*):
            If given, log-probabilities of the chosen tokens are recorded at this temperature.
        engine ([`RolloutEngine`], *optional*):
            Decoding loop of the calls that it accepts, in the place of the stock one.
        watcher ([`~transformers.StoppingCriteria`], *optional*):
            Called after each step of the stock loop, such as [`~rollouts.progress.StockLoopProgress`].

    Yields:
        `list[ThinkingRollout]`: one item per call, in the order of the calls.
    """
    collector = ThinkingCollector(tokenizer, logps_temperature, engine, watcher, [])
    token = _collector.set(collector)
    try:
        yield collector.rollouts
    finally:
        _collector.reset(token)


def thinking_output(sequences: torch.Tensor, rollout: ThinkingRollout | None, returns_dict: bool, **recorded):
    """
    What a call of `generate` returns for its sequences `(B, P + C)`; hands the rollout to the collector, if there is
    one. `recorded`: other fields of [`~transformers.generation.GenerateDecoderOnlyOutput`].
    """
    collector = _collector.get()
    if rollout is not None and collector is not None:
        collector.rollouts.append(rollout)
    if not returns_dict:
        return sequences
    if rollout is None:
        return GenerateDecoderOnlyOutput(sequences=sequences, **recorded)
    return GenerateThinkingOutput(
        **recorded,
        sequences=sequences,
        thinking_states=rollout.states,
        thinking_mask=rollout.mask,
        embeds_ratio=rollout.embeds_ratio,
    )
