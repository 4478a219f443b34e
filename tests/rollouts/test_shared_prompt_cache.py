"""Attention over shared prompts against attention over a copied cache."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from hf_evidenceflow.rollouts.shared_prompt_cache import SharedPromptCache, SharedPromptLayout


KV, HEADS, SIZE, PROMPT = 2, 6, 5, 7


def reference(query, prompt_keys, prompt_values, keys, values, masks, prompts, lengths):
    """One row at a time, keys and values copied."""
    outputs = []
    for row, prompt in enumerate(prompts):
        key = torch.cat([prompt_keys[prompt][:, masks[prompt].bool()], keys[row, :, : lengths[row]]], dim=1)
        value = torch.cat([prompt_values[prompt][:, masks[prompt].bool()], values[row, :, : lengths[row]]], dim=1)
        repeats = HEADS // KV
        output = F.scaled_dot_product_attention(
            query[row], key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        )
        outputs.append(output.transpose(0, 1))
    return torch.stack(outputs)


@pytest.mark.parametrize("prompts", [[0, 0, 1, 1], [1, 0, 1, 1], [0], [2, 1, 0]])
@pytest.mark.parametrize("same_step", [True, False])
def test_attention_equals_that_over_copies(prompts, same_step):
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    count, rows = max(prompts) + 1, len(prompts)
    prompt_keys, prompt_values = draw(count, KV, PROMPT, SIZE), draw(count, KV, PROMPT, SIZE)
    mask = (torch.arange(PROMPT) >= torch.arange(count)[:, None]).long()
    prompt_cache = DynamicCache()
    prompt_cache.update(prompt_keys, prompt_values, 0)
    cache = SharedPromptCache(rows, count, PROMPT, 4, torch.device("cpu"), torch.float32)
    cache.put_prompts(0, prompt_cache, mask)
    cache.set_rows(prompts, count)
    keys, values = draw(rows, KV, 3, SIZE), draw(rows, KV, 3, SIZE)
    last = [2] * rows if same_step else [row % 3 for row in range(rows)]
    for step in range(3):  # rows that are further are written last
        steps = [min(step, end) for end in last]
        cache.set_steps(steps)
        positions = torch.tensor(steps)[:, None, None, None].expand(rows, KV, 1, SIZE)
        layer, _ = cache.update(keys.gather(2, positions), values.gather(2, positions), 0)
    query = draw(rows, HEADS, 1, SIZE)
    expected = reference(query, prompt_keys, prompt_values, keys, values, mask, prompts, [end + 1 for end in last])
    torch.testing.assert_close(layer.attend(query, SIZE**-0.5), expected, atol=1e-6, rtol=1e-5)


def test_a_prompt_is_held_once():
    cache = SharedPromptCache(8, 2, PROMPT, 4, torch.device("cpu"), torch.float32)
    prompt_cache = DynamicCache()
    prompt_cache.update(torch.ones(2, KV, PROMPT, SIZE), torch.ones(2, KV, PROMPT, SIZE), 0)
    cache.put_prompts(0, prompt_cache, torch.ones(2, PROMPT))
    cache.set_rows([0, 0, 0, 0, 1, 1, 1, 1], 2)
    assert cache.layers[0].prompt_keys.shape == (2, KV, PROMPT, SIZE)


@pytest.mark.parametrize("prompts", [[0, 0, 1, 1], [1, 0, 1], [0, 2, 2, 2, 1]])
def test_a_grid_gives_the_rows_back(prompts):
    layout = SharedPromptLayout(prompts, max(prompts) + 1, torch.device("cpu"))
    rows = torch.randn(len(prompts), KV, 3, SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layout.from_grid(layout.to_grid(rows), 3), rows)
