"""One pass over prompts of different lengths."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import DynamicCache

from ..models.thinking.cache_argument import CACHE


def prefill(model, prompts: list[list[int]], device: torch.device, inputs: Mapping[str, Any] | None = None):
    """
    Run a causal LM over prompts, token ids without padding; `inputs` are further ones, those of thinking.

    Returns:
        `tuple`: logits behind each prompt `(m, V)` in fp32; the cache; the left-padded attention mask `(m, P)`.
    """
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    outputs = model(
        input_ids=ids,
        # Without padding a plain causal mask is faster
        attention_mask=None if mask.all() else mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        **{CACHE: DynamicCache(config=model.config)},
        use_cache=True,
        logits_to_keep=1,
        **(inputs or {}),
    )
    return outputs.logits[:, -1].float(), outputs[CACHE], mask
