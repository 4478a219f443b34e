"""Continuations of prompts, greedy and sampled, and how much they repeat themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..rollouts.generation_settings import own_generation_config
from .completions import seeded, stop_tokens


DISTINCT = (1, 2, 3)
REPEATED = 4


@dataclass(frozen=True)
class Continuation:
    """
    A continuation: place of its prompt, number of the sample of that prompt from 0, text without special tokens,
    number of tokens without the one that ended it, whether it ended by itself, and its [`repetition_measures`].
    """

    prompt: int
    sample: int
    text: str
    tokens: int
    finished: bool
    repetition: dict[str, float | None]


def repetition_measures(ids: Sequence[int]) -> dict[str, float | None]:
    """
    How much a text of these token ids repeats itself.

    Returns:
        `dict[str, float | None]`: `distinct_1`, `distinct_2` and `distinct_3`, the share of the n-grams that differ
        (1 is no repetition), and `repeated_4`, the share of the 4-grams that stood in the text before (0 is no
        repetition); `None` where the text is shorter than n tokens.

    Source: distinct-n: Li et al. 2016 (arXiv 1510.03055); repeated 4-grams: seq-rep-4 of Welleck et al. 2020 (arXiv
    1908.04319).

    Example:

    ```python
    >>> repetition_measures([5, 6, 5, 6])
    {'distinct_1': 0.5, 'distinct_2': 0.6666666666666666, 'distinct_3': 1.0, 'repeated_4': 0.0}
    ```
    """

    def distinct(n):
        grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
        return len(set(grams)) / len(grams) if grams else None

    repeated = distinct(REPEATED)
    return {f"distinct_{n}": distinct(n) for n in DISTINCT} | {
        f"repeated_{REPEATED}": None if repeated is None else 1 - repeated
    }


def mean_repetition(continuations: Iterable[Continuation]) -> dict[str, float | None]:
    """
    The mean of each of [`repetition_measures`] over the continuations (at least one) that are long enough for it,
    `None` if none is; the mean number of `tokens`, and the share that `finished`.
    """
    continuations = list(continuations)
    means = {}
    for name in continuations[0].repetition:
        values = [item.repetition[name] for item in continuations if item.repetition[name] is not None]
        means[name] = sum(values) / len(values) if values else None
    for name in ("tokens", "finished"):
        means[name] = sum(getattr(item, name) for item in continuations) / len(continuations)
    return means


def continue_prompts(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    num_samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    seed: int = 0,
) -> list[Continuation]:
    """
    Continue prompts, one at a time, by a causal LM in eval mode. Settings of the checkpoint's generation config do not
    slip in; the global random state is left as it was.

    Args:
        prompts (`Sequence[Sequence[int]]`):
            Token ids of the prompts.
        num_samples (`int`, *optional*, defaults to `0`):
            Sampled continuations per prompt; `0` is one greedy continuation.
        temperature, top_p, repetition_penalty, no_repeat_ngram_size:
            As in [`~transformers.GenerationConfig`]; the defaults change nothing.
        seed (`int`, *optional*, defaults to `0`):
            Seed, at least 0. Each sample of each prompt has its own stream.

    Returns:
        `list[Continuation]`: prompt by prompt, sample by sample.

    Example:

    ```python
    >>> continue_prompts(model, tokenizer, [tokenizer("Once upon a").input_ids], 32, repetition_penalty=1.2)[0].text
    ```
    """
    stop = stop_tokens(model, tokenizer)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if num_samples else {}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stop or [0])[0]
    config = own_generation_config(
        model,
        max_new_tokens=max_new_tokens,
        do_sample=num_samples > 0,
        num_beams=1,
        repetition_penalty=float(repetition_penalty),
        no_repeat_ngram_size=no_repeat_ngram_size,
        eos_token_id=stop or None,
        pad_token_id=pad,
        **sampling,
    )
    device, results = model.device, []
    for place, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"Prompt {place} has no token, so it cannot be continued. Give a longer one.")
        input_ids = torch.tensor([list(prompt)], device=device)
        for sample in range(max(1, num_samples)):
            with seeded(device, seed, place, sample):
                output = model.generate(
                    input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
                )
            ids = output[0, len(prompt) :].tolist()
            end = next((index for index, token in enumerate(ids) if token in stop), None)
            ids = ids[:end]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            results.append(Continuation(place, sample, text, len(ids), end is not None, repetition_measures(ids)))
    return results


def repetition_table(means: Mapping[str, Mapping]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of a table that compares ways of decoding, given [`mean_repetition`] by their names."""
    columns = [*(f"distinct-{n}" for n in DISTINCT), f"repeated {REPEATED}-grams", "mean tokens", "finished"]

    def cells(mean):
        *shares, tokens, finished = mean.values()
        return [*("-" if share is None else f"{share:.3f}" for share in shares), f"{tokens:.1f}", f"{finished:.2f}"]

    return "Repetition of the continuations", ["decoding", *columns], [[name, *cells(means[name])] for name in means]
