"""The block table, the paged cache, and generation with it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes.course.fast_inference.block_table import BlockPool, BlockTable, OutOfBlocksError
from hf_evidenceflow.recipes.course.fast_inference.paged_cache import PagedCache
from hf_evidenceflow.recipes.course.fast_inference.paged_generation import paged_generate


LAYERS = 3
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [1, 2], [8, 9, 10, 11, 12, 13, 14]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 41, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "eos_token_id": None, "initializer_range": 0.25}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=LAYERS)).eval()


@pytest.fixture(scope="module")
def greedy(model):
    """What stock `generate` gives for each prompt alone."""
    return [
        model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]


def sampled_alone(model, prompt, seed, count):
    """Plain sampling of one sequence without a cache, from a generator of its own."""
    generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
    for _ in range(count):
        with torch.no_grad():
            probabilities = model(torch.tensor([tokens]), use_cache=False).logits[0, -1].softmax(-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return tokens[len(prompt) :]


# Bookkeeping


def test_a_table_gives_each_token_a_slot_of_its_own():
    pool = BlockPool(num_blocks=7, block_size=3)
    first, second = BlockTable(pool), BlockTable(pool)
    slots = [first.append(2)[0], second.append(5)[0], first.append(3)[0]]
    assert first.slots() == slots[0] + slots[2]
    assert len(set(first.slots() + second.slots())) == 10
    assert pool.used_blocks == 4 and pool.shared_blocks == 0


def test_a_fork_shares_all_blocks_and_they_are_counted():
    pool = BlockPool(num_blocks=7, block_size=3)
    table = BlockTable(pool)
    table.append(5)
    forks = [table.fork(), table.fork()]
    assert pool.used_blocks == 2 and pool.shared_blocks == 2 and pool.saved_blocks == 4
    assert all(fork.slots() == table.slots() for fork in forks)


def test_a_write_to_a_shared_block_copies_it_and_the_last_holder_writes_in_place():
    pool = BlockPool(num_blocks=7, block_size=3)
    table = BlockTable(pool)
    table.append(5)
    shared, fork = list(table.blocks), table.fork()
    slots, copy = fork.append(1)
    assert copy == (shared[1], fork.blocks[1]) and fork.blocks[1] != shared[1]
    assert slots == [fork.blocks[1] * 3 + 2]
    assert fork.blocks[0] == shared[0] and table.blocks == shared
    assert table.append(1) == ([shared[1] * 3 + 2], None)


def test_a_fork_at_a_block_border_copies_nothing():
    pool = BlockPool(num_blocks=7, block_size=3)
    table = BlockTable(pool)
    table.append(6)
    _, copy = table.fork().append(1)
    assert copy is None and pool.used_blocks == 3


def test_all_blocks_come_back():
    pool = BlockPool(num_blocks=7, block_size=3)
    table = BlockTable(pool)
    table.append(8)
    fork = table.fork()
    fork.append(4)
    for one in (table, fork, table):
        one.free()
    assert pool.free_blocks == 7 and pool.holders == [0] * 7


def test_a_prompt_finds_the_full_blocks_of_an_earlier_one_but_for_its_last_token():
    pool = BlockPool(num_blocks=9, block_size=3)
    table = BlockTable(pool)
    table.append(8)
    table.publish(list(range(8)))
    longer, same, other = BlockTable(pool), BlockTable(pool), BlockTable(pool)
    assert longer.take_prefix([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]) == 6  # the third block was not full
    assert same.take_prefix([0, 1, 2, 3, 4, 5]) == 3
    assert other.take_prefix([0, 1, 9, 3, 4, 5, 6]) == 0
    assert longer.blocks == table.blocks[:2] and pool.holders[table.blocks[0]] == 3


def test_the_same_tokens_behind_another_beginning_are_another_block():
    pool = BlockPool(num_blocks=9, block_size=2)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        table = BlockTable(pool)
        table.append(4)
        table.publish(tokens)
    other = BlockTable(pool)
    assert other.take_prefix([5, 6, 3, 4, 0]) == 2


def test_a_freed_block_is_found_until_it_is_handed_out_again():
    pool = BlockPool(num_blocks=2, block_size=2)
    table = BlockTable(pool)
    table.append(4)
    table.publish([1, 2, 3, 4])
    table.free()
    again = BlockTable(pool)
    assert again.take_prefix([1, 2, 3, 4, 5]) == 4 and pool.free_blocks == 0
    again.free()
    BlockTable(pool).append(1)  # takes the end, as the beginning is of more use to others
    third = BlockTable(pool)
    assert third.take_prefix([1, 2, 3, 4, 5]) == 2


def test_a_full_pool_is_an_error_that_changes_nothing():
    pool = BlockPool(num_blocks=2, block_size=3)
    table = BlockTable(pool)
    table.append(4)
    with pytest.raises(OutOfBlocksError, match="3 tokens need 1 more blocks, but 0 of 2 are free"):
        table.append(3)
    assert table.length == 4 and table.append(2)[1] is None


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        BlockPool(0, 4)
    pool = BlockPool(2, 2)
    with pytest.raises(RuntimeError, match="released more often"):
        pool.release(0)
    table = BlockTable(pool)
    table.append(1)
    with pytest.raises(RuntimeError, match="empty table"):
        table.take_prefix([1, 2, 3])


# With a model


def test_a_pass_in_blocks_equals_a_contiguous_one(model):
    cache = PagedCache(LAYERS, num_blocks=9, block_size=4)
    tables = [BlockTable(cache.pool) for _ in PROMPTS[:2]]
    with torch.no_grad():
        for table, prompt in zip(tables, PROMPTS):
            model(**cache.prepare([table], [prompt]), past_key_values=cache)
        logits = model(**cache.prepare(tables, [[20], [21]]), past_key_values=cache).logits[:, -1]
        expected = [model(torch.tensor([[*prompt, token]])).logits[0, -1] for prompt, token in zip(PROMPTS, (20, 21))]
    # Another order of summation in float32
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_copy_on_write_isolates_the_samples(model):
    cache = PagedCache(LAYERS, num_blocks=9, block_size=4)
    table = BlockTable(cache.pool)
    with torch.no_grad():
        model(**cache.prepare([table], [PROMPTS[1]]), past_key_values=cache)
        fork = table.fork()
        logits = model(**cache.prepare([table, fork], [[20], [21]]), past_key_values=cache).logits
        logits = model(**cache.prepare([table, fork], [[22], [22]]), past_key_values=cache).logits[:, -1]
        expected = [model(torch.tensor([[*PROMPTS[1], token, 22]])).logits[0, -1] for token in (20, 21)]
    assert cache.copied_blocks == 1
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert (logits[0] - logits[1]).abs().max() > 0.1


@pytest.mark.parametrize("num_blocks", [7, 40])
def test_greedy_generation_equals_stock_generate(model, greedy, num_blocks):
    cache = PagedCache(LAYERS, num_blocks, block_size=4)
    outputs, trace = paged_generate(model, cache, PROMPTS, max_new_tokens=20)
    assert [samples[0] for samples in outputs] == greedy
    assert (trace.preemptions > 0) == (num_blocks == 7)
    assert max(trace.used) <= num_blocks and cache.pool.used_blocks == 0


@pytest.mark.parametrize("num_blocks", [10, 60])
def test_samples_do_not_depend_on_who_runs_beside_them(model, num_blocks):
    cache = PagedCache(LAYERS, num_blocks, block_size=4)
    outputs, trace = paged_generate(model, cache, PROMPTS, 11, num_samples=3, do_sample=True, seed=5)
    for index in (0, 3):
        for sample in (0, 2):
            expected = sampled_alone(model, PROMPTS[index], 5 + 7919 * index + sample, 11)
            assert outputs[index][sample] == expected
    assert trace.copies > 0 and max(trace.saved) > 0


def test_a_second_call_finds_the_prompt(model):
    cache = PagedCache(LAYERS, num_blocks=30, block_size=4)
    first, trace = paged_generate(model, cache, PROMPTS[3:], 5)
    assert trace.found_tokens == 0
    second, trace = paged_generate(model, cache, PROMPTS[3:], 5)
    assert trace.found_tokens == 4 and second == first


def test_samples_of_a_prompt_take_fewer_blocks_than_rows_of_a_contiguous_cache(model):
    cache = PagedCache(LAYERS, num_blocks=60, block_size=4)
    _, trace = paged_generate(model, cache, PROMPTS, 6, num_samples=3, do_sample=True)
    assert all(used < contiguous for used, contiguous in zip(trace.used, trace.contiguous))


def test_an_end_of_text_token_ends_a_sample(model, greedy):
    end = greedy[0][4]
    cache = PagedCache(LAYERS, num_blocks=30, block_size=4)
    outputs, _ = paged_generate(model, cache, PROMPTS[:1], 20, eos_token_id=end)
    assert outputs[0][0] == greedy[0][: greedy[0].index(end) + 1]


def test_a_cache_too_small_for_one_sample_is_named_and_left_empty(model):
    cache = PagedCache(LAYERS, num_blocks=2, block_size=4)
    with pytest.raises(OutOfBlocksError, match="do not hold one sample of 9 tokens"):
        paged_generate(model, cache, PROMPTS[1:2], 20)
    assert cache.pool.used_blocks == 0


def test_bad_requests_are_refused(model):
    cache = PagedCache(LAYERS, num_blocks=4, block_size=4)
    with pytest.raises(ValueError, match="at least one token"):
        paged_generate(model, cache, [[1], []], 3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        paged_generate(model, cache, [[1]], 0)
    with pytest.raises(ValueError, match=r"as many tokens each, got \[1, 2\]"):
        cache.prepare([BlockTable(cache.pool), BlockTable(cache.pool)], [[1], [1, 2]])
