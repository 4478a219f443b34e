"""Decoding with drafts in the ways of stock `generate`: are the tokens the same, how many drafts stand, how fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_evidenceflow.early_exit.speed import GreedyDecoding, in_turn
from hf_evidenceflow.recipes.course.fast_inference.acceptance import AcceptanceStatistics, generate_with_acceptance
from hf_evidenceflow.rollouts.generation_settings import own_generation_config


@dataclass
class SpeculationResult:
    """
    One way of decoding.

    Args:
        identical (`int`):
            Prompts with the tokens of plain greedy decoding.
        acceptance, tokens_per_pass (`float`):
            Share of the drafts that were kept (NaN without any), and new tokens for each pass of the whole model.
        by_position (`list[float]`):
            As [`AcceptanceStatistics.rate_by_position`]; empty for a [`SelfSpeculation`], which counts no places.
        ratio, ratio_min, ratio_max (`float`):
            Tokens per second over those of plain greedy decoding in the same round: median and range over rounds.
    """

    identical: int
    acceptance: float
    tokens_per_pass: float
    by_position: list[float]
    ratio: float
    ratio_min: float
    ratio_max: float

    def to_dict(self) -> dict[str, Any]:
        """As numbers, for `metrics.json`."""
        return {
            "identical": self.identical,
            "acceptance": self.acceptance,
            "acceptance_by_position": self.by_position,
            "tokens_per_pass": self.tokens_per_pass,
            "speed": {"ratio": self.ratio, "min": self.ratio_min, "max": self.ratio_max},
        }


def fixed_drafts(draft: PreTrainedModel, count: int) -> PreTrainedModel:
    """
    Let a draft model propose always the same number of tokens. By default transformers changes it from pass to pass
    and ends drafts early at a token of low confidence.

    Args:
        draft (`PreTrainedModel`):
            Draft model; its generation configuration is changed.
        count (`int`):
            Drafts a pass.

    Returns:
        `PreTrainedModel`: the same model.
    """
    draft.generation_config.num_assistant_tokens = count
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    return draft


def compare_speculation(
    model: PreTrainedModel,
    prompts: Sequence[torch.LongTensor],
    ways: Mapping[str, Mapping[str, Any]],
    max_new_tokens: int,
    rounds: int = 3,
) -> dict[str, SpeculationResult]:
    """
    Decode greedily in several ways.

    Args:
        model (`PreTrainedModel`):
            Target model.
        prompts (`Sequence[torch.LongTensor]`):
            Prompts of shape `(1, T)`.
        ways (`Mapping[str, Mapping[str, Any]]`):
            Arguments of `generate` by name; those of the first, plain greedy decoding, are empty. A `draft_count`
            beside `assistant_model` fixes the number of drafts. `custom_generate` may be a [`SelfSpeculation`].
        max_new_tokens (`int`):
            Tokens a prompt.
        rounds (`int`, *optional*, defaults to `3`):
            Rounds of timing, in which all ways take turns.

    Returns:
        `dict[str, SpeculationResult]`: by the name of the way.
    """

    def settings_of(name):
        settings = dict(ways[name])
        count = settings.pop("draft_count", None)
        if count is not None:
            fixed_drafts(settings["assistant_model"], count)
        return settings

    decoding = GreedyDecoding(model, prompts, max_new_tokens)
    plain = decoding.outputs()
    counted = {}
    for name in ways:
        settings = settings_of(name)
        own = settings.get("custom_generate")
        if own is not None:
            own.reset()
            outputs = decoding.outputs(**settings)
            passes = own.rounds + len(prompts)  # and the one over each prompt
            counts = own.accept_rate, (own.accepted + passes) / passes, []
        else:
            outputs, statistics = _counted_outputs(decoding, settings)
            counts = statistics.rate, statistics.tokens_per_pass, statistics.rate_by_position()
        counted[name] = sum(torch.equal(one, other) for one, other in zip(outputs, plain)), *counts
    speeds = in_turn(
        {name: lambda name=name: sum(map(len, decoding.outputs(**settings_of(name)))) for name in ways}, rounds
    )
    return {
        name: SpeculationResult(*counted[name], speed.ratio, speed.ratio_min, speed.ratio_max)
        for name, speed in speeds.items()
    }


def _counted_outputs(decoding, settings):
    statistics, arguments = AcceptanceStatistics(), decoding.arguments(**settings)
    outputs = [
        generate_with_acceptance(
            decoding.model, prompt, statistics, attention_mask=torch.ones_like(prompt), **arguments
        )[0][0, prompt.shape[1] :]
        for prompt in decoding.prompts
    ]
    return outputs, statistics


@torch.no_grad()
def count_continuations(
    model: PreTrainedModel, prompt: torch.LongTensor, draws: int, seed: int = 0, **generate_kwargs
) -> torch.LongTensor:
    """
    Sample two tokens again and again with stock `generate`.

    Args:
        model (`PreTrainedModel`):
            A causal LM.
        prompt (`torch.LongTensor` of shape `(1, T)`):
            Prompt.
        draws (`int`):
            Samples.
        seed (`int`, *optional*, defaults to `0`):
            Seed.
        **generate_kwargs:
            Further arguments of `generate` that are no settings, such as `assistant_model`.

    Returns:
        `torch.LongTensor` of shape `(V, V)`: how often each pair of tokens was drawn.
    """
    torch.manual_seed(seed)
    size = model.config.vocab_size
    counts = torch.zeros(size, size, dtype=torch.long)
    config = own_generation_config(model, do_sample=True, min_new_tokens=2, max_new_tokens=2)
    for _ in range(draws):
        first, second = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, **generate_kwargs
        )[0, -2:]
        counts[first, second] += 1
    return counts


@torch.no_grad()
def continuation_probabilities(model: PreTrainedModel, prompt: torch.LongTensor) -> torch.Tensor:
    """
    The exact distribution of the next two tokens.

    Args:
        model (`PreTrainedModel`):
            A causal LM.
        prompt (`torch.LongTensor` of shape `(1, T)`):
            Prompt.

    Returns:
        `torch.Tensor` of shape `(V, V)`, float64: the probability of each pair.
    """
    first = model(prompt).logits[0, -1].double().softmax(-1)  # [V]
    tokens = torch.arange(len(first))
    rows = torch.cat([prompt.expand(len(tokens), -1), tokens[:, None]], dim=1)
    second = torch.cat([model(part).logits[:, -1].double().softmax(-1) for part in rows.split(128)])
    return first[:, None] * second
