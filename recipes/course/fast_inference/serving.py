"""Many prompts with several samples each: one by one, as a padded batch, by stock continuous batching, and paged."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from hf_evidenceflow.recipes.course.fast_inference.paged_cache import PagedCache
from hf_evidenceflow.recipes.course.fast_inference.paged_generation import PagedTrace, paged_generate
from hf_evidenceflow.rollouts.generation_settings import own_generation_config


def compare_serving(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    max_new_tokens: int,
    num_blocks: int,
    block_size: int,
    pad_token_id: int,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], PagedTrace]:
    """
    Continue all prompts in four ways: once greedily, to compare the tokens, and once with several samples, to time it.

    Args:
        model (`PreTrainedModel`):
            A causal LM.
        prompts (`Sequence[Sequence[int]]`):
            Token ids of the prompts.
        num_samples (`int`):
            Samples a prompt.
        max_new_tokens (`int`):
            Tokens a sample; an EOS token does not end them, so that all ways do the same work.
        num_blocks, block_size (`int`):
            Blocks of the paged caches, and tokens a block.
        pad_token_id (`int`):
            Fills the rows of the padded batch.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the samples.

    Returns:
        `tuple[dict[str, dict[str, Any]], PagedTrace]`: by way `identical`, `prompts`, `tokens_per_second`, and
        `peak_slots`, the most tokens that the cache had room for at a time (`None`: not to be seen from outside); and
        the trace of the paged run with samples.
    """
    longest = max(map(len, prompts))
    padded = torch.full((len(prompts), longest), pad_token_id)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(prompts):
        padded[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    traces = []

    def stock(input_ids, attention_mask, samples):
        config = own_generation_config(
            model,
            max_new_tokens=max_new_tokens,
            do_sample=samples > 1,
            num_return_sequences=samples,
            eos_token_id=None,
            pad_token_id=pad_token_id,
        )
        output = model.generate(input_ids, attention_mask=attention_mask, generation_config=config)
        return output[:, input_ids.shape[1] :].tolist()

    def one_by_one(samples):
        rows = (torch.tensor([list(prompt)]) for prompt in prompts)
        return [tokens for row in rows for tokens in stock(row, torch.ones_like(row), samples)]

    def continuous(samples):
        # Samples enter as requests of their own; the second one finds the first one's blocks
        outputs = model.generate_batch(
            [list(prompt) for prompt in prompts for _ in range(samples)],
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens, do_sample=samples > 1, top_k=0, eos_token_id=-1
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=block_size, num_blocks=num_blocks, max_batch_tokens=num_blocks * block_size, seed=seed
            ),
        )
        return [output.generated_tokens for output in outputs.values()]

    def paged(samples):
        cache = PagedCache(model.config.num_hidden_layers, num_blocks, block_size)
        outputs, trace = paged_generate(model, cache, prompts, max_new_tokens, samples, samples > 1, seed=seed)
        traces.append(trace)
        return [tokens for group in outputs for tokens in group]

    ways: dict[str, tuple[Callable[[int], list[list[int]]], int | None]] = {
        "`generate`, one prompt at a time": (one_by_one, num_samples * (longest + max_new_tokens)),
        "`generate`, one padded batch": (
            lambda samples: stock(padded, mask, samples),
            len(prompts) * num_samples * (longest + max_new_tokens),
        ),
        "`generate_batch` (continuous, paged)": (continuous, None),
        "block table": (paged, None),
    }
    results, expected = {}, None
    for name, (way, slots) in ways.items():
        greedy = way(1)
        expected = greedy if expected is None else expected
        torch.manual_seed(seed)
        start = time.perf_counter()
        tokens = sum(map(len, way(num_samples)))
        results[name] = {
            "identical": sum(one == other for one, other in zip(greedy, expected)),
            "prompts": len(prompts),
            "tokens_per_second": tokens / (time.perf_counter() - start),
            "peak_slots": slots,
        }
    results["block table"]["peak_slots"] = max(traces[-1].used) * block_size
    return results, traces[-1]
