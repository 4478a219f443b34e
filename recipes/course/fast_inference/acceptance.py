"""How many drafted tokens stock assisted generation keeps, read off the passes of the target model."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from hf_evidenceflow.models.thinking.cache_argument import CACHE


@dataclass
class AcceptanceStatistics:
    """
    Counts of one or several calls of `generate`.

    Args:
        passes (`list[tuple[int, int]]`):
            For each pass of the target model, how many tokens were drafted for it, and how many of them it kept.
    """

    passes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def drafted(self) -> int:
        """Tokens drafted."""
        return sum(drafted for drafted, _ in self.passes)

    @property
    def accepted(self) -> int:
        """Drafted tokens that stand in the output."""
        return sum(accepted for _, accepted in self.passes)

    @property
    def rate(self) -> float:
        """
        Share of the drafted tokens that were kept. It is lower than the probability that a single one is kept: behind
        the first refused token all drafts are lost. NaN if none was drafted.
        """
        return self.accepted / self.drafted if self.drafted else float("nan")

    @property
    def tokens_per_pass(self) -> float:
        """New tokens for each pass of the target model: 1 without drafts."""
        return (self.accepted + len(self.passes)) / len(self.passes)

    def rate_by_position(self) -> list[float]:
        """
        The share of passes that kept the i-th draft, among those that had one and kept all before it: an estimate of
        the probability that a single draft is kept, by its place.

        Returns:
            `list[float]`: for draft 1, 2, and so on; NaN where none was tried.
        """
        longest = max((drafted for drafted, _ in self.passes), default=0)
        rates = []
        for place in range(longest):
            tried = [accepted for drafted, accepted in self.passes if drafted > place and accepted >= place]
            rates.append(sum(accepted > place for accepted in tried) / len(tried) if tried else float("nan"))
        return rates


def generate_with_acceptance(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    statistics: AcceptanceStatistics | None = None,
    **generate_kwargs,
) -> tuple[torch.LongTensor, AcceptanceStatistics]:
    """
    Stock `generate` with drafts, and what became of them.

    Nothing in `generate` reports it, but the target model's passes show it: a pass over n tokens on top of a cache of
    c has n + c - (tokens so far) drafts, and the cache of the next one has been cut to the tokens that were kept.

    Args:
        model (`PreTrainedModel`):
            Target model.
        input_ids (`torch.LongTensor` of shape `(1, T)`):
            Prompt. Assisted generation takes one row.
        statistics ([`AcceptanceStatistics`], *optional*):
            Earlier counts to add to.
        **generate_kwargs:
            Of `generate`: `assistant_model`, `prompt_lookup_num_tokens` or `assistant_early_exit`, and the rest.

    Returns:
        `tuple[torch.LongTensor, AcceptanceStatistics]`: the sequence, `(1, T + new)`, and the counts.

    Raises:
        `ValueError`: for more than one row, or a decoding method of another kind (`custom_generate`).

    Example:

    ```python
    >>> sequence, statistics = generate_with_acceptance(model, input_ids, assistant_model=draft, max_new_tokens=64)
    >>> statistics.rate, statistics.tokens_per_pass
    ```
    """
    if len(input_ids) != 1:
        raise ValueError(f"Assisted generation takes one row, got {len(input_ids)}. Call it for each of them.")
    if generate_kwargs.get("custom_generate") is not None:
        raise ValueError("The passes of a `custom_generate` cannot be read here. `SelfSpeculation` counts its own.")
    statistics = AcceptanceStatistics() if statistics is None else statistics
    depth = model.config.num_hidden_layers
    calls = []

    def record(module, args, kwargs):
        # `assistant_early_exit` drafts with this same model, made shallower for the while
        if model.config.num_hidden_layers == depth:
            inputs = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            calls.append((kwargs[CACHE].get_seq_length(), inputs.shape[1]))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        sequence = model.generate(input_ids, **generate_kwargs)
    finally:
        handle.remove()

    tokens = input_ids.shape[1]
    # Behind the last pass the output ends: with the pass's own token or, cut off, with a draft that counts as it
    lengths = [cached + 1 for cached, _ in calls[1:]] + [sequence.shape[1]]
    for (cached, entered), length in zip(calls, lengths):
        drafted = cached + entered - tokens
        statistics.passes.append((drafted, length - tokens - 1))
        tokens = length
    return sequence, statistics
