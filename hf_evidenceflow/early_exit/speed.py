"""How fast an exit is: decoding at several depths in turn, against full depth in the same run."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..rollouts.generation_settings import own_generation_config
from .criteria import EarlyExitConfig
from .generation import early_exit
from .layer_calls import profile_layers
from .self_speculation import SelfSpeculation
from .truncation import exit_at


FULL_DEPTH = "full depth"


@dataclass(frozen=True)
class Speed:
    """
    Speed of one candidate of [`in_turn`].

    `tokens_per_second` is the median over the rounds; `ratio` the median of it divided by the first candidate's in the
    same round, and `ratio_min` and `ratio_max` its range.
    """

    tokens_per_second: float
    ratio: float
    ratio_min: float
    ratio_max: float


def in_turn(
    candidates: Mapping[str, Callable[[], int]], rounds: int, clock: Callable[[], float] | None = None
) -> dict[str, Speed]:
    """
    Time candidates in turn, round after round, each beginning with another one.

    A candidate returns the number of tokens that it made, and runs once before, untimed. The first is what the others
    are compared with. `clock` tells the seconds, by default `time.perf_counter`; `time.process_time` counts those in
    which this process had a core.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"Needed are a candidate and a round, got {len(candidates)} and rounds={rounds}.")
    clock = time.perf_counter if clock is None else clock
    names = list(candidates)
    for candidate in candidates.values():
        candidate()
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            tokens = candidates[name]()
            speeds[name].append(tokens / (clock() - start))
    ratios = {name: [own / first for own, first in zip(speeds[name], speeds[names[0]])] for name in names}
    return {
        name: Speed(
            statistics.median(speeds[name]), statistics.median(ratios[name]), min(ratios[name]), max(ratios[name])
        )
        for name in names
    }


class GreedyDecoding:
    """
    Greedy decoding of a few prompts `[1, P]`, one at a time, in the ways that are compared: at most `max_new_tokens`
    each, less where the end-of-text token comes.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[torch.Tensor], max_new_tokens: int):
        self.model = model
        self.prompts = [prompt.to(model.device) for prompt in prompts]
        self.max_new_tokens = max_new_tokens

    def arguments(self, assistant_model=None, custom_generate=None, **settings) -> dict:
        """Arguments of `generate`; the settings are fields of its configuration."""
        config = own_generation_config(self.model, max_new_tokens=self.max_new_tokens, do_sample=False, **settings)
        return {
            "generation_config": config,
            "assistant_model": assistant_model,
            "custom_generate": custom_generate,
        }

    def outputs(self, **settings) -> list[torch.Tensor]:
        """The new tokens of each prompt; takes what [`arguments`] takes."""
        arguments = self.arguments(**settings)
        return [
            self.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **arguments)[
                0, prompt.shape[1] :
            ]
            for prompt in self.prompts
        ]

    def full(self) -> int:
        """At full depth. Like all of these, returns the number of new tokens."""
        return sum(map(len, self.outputs()))

    def truncated(self, depth: int) -> int:
        """With the first `depth` layers only."""
        with exit_at(self.model, depth):
            return self.full()

    def adaptive(self, config: EarlyExitConfig) -> int:
        """With early exit by a criterion."""
        with early_exit(self.model, config):
            return self.full()

    def speculative(self, speculation: SelfSpeculation) -> int:
        """With self-speculation."""
        return sum(map(len, self.outputs(custom_generate=speculation)))

    def stock_outputs(self, depth: int, draft_tokens: int | None = None) -> tuple[list[torch.Tensor], int, int]:
        """What [`stock`] writes, its verifying passes, and the tokens that it drafted."""
        layers = profile_layers(self.model).parts.layers
        calls = [0, 0]

        def count(place):
            calls[place] += 1

        handles = [
            layers[layer].register_forward_hook(lambda *_, place=place: count(place))
            for place, layer in enumerate((0, -1))
        ]
        try:
            outputs = self._stock(depth, draft_tokens)
        finally:
            for handle in handles:
                handle.remove()
        return outputs, calls[1], calls[0] - calls[1]

    def stock(self, depth: int, draft_tokens: int | None = None) -> int:
        """With stock `assistant_early_exit`, whose drafts have at most `draft_tokens` tokens; `None`: its default."""
        return sum(map(len, self._stock(depth, draft_tokens)))

    def _stock(self, depth, draft_tokens):
        config = self.model.generation_config  # where `generate` looks for it
        before = config.num_assistant_tokens
        config.num_assistant_tokens = draft_tokens or before
        try:
            return self.outputs(assistant_early_exit=depth)
        finally:
            config.num_assistant_tokens = before
