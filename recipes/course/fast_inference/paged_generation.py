"""Generation with a paged cache: prompts that come and go, samples that share their prompt, a bounded memory."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.recipes.course.fast_inference.block_table import BlockTable, OutOfBlocksError
from hf_evidenceflow.recipes.course.fast_inference.paged_cache import PagedCache


@dataclass
class PagedTrace:
    """
    What a generation took.

    Args:
        used, shared, saved (`list[int]`):
            After each pass of decoding: blocks in use, blocks that several samples hold, and the blocks that sharing
            saved.
        rows (`list[int]`):
            Rows of each of these passes.
        contiguous (`list[int]`):
            Blocks' worth of a cache that is laid out row by row, with room for the longest row.
        tables (`list[list[int]]`):
            Blocks of each row, in its order, at the pass with most blocks in use.
        prompt_tokens, found_tokens (`int`):
            Tokens of all prompts, and those of them that were in the cache already.
        copies, preemptions (`int`):
            Blocks copied on a write, and samples sent back to wait because there was no block left.
    """

    used: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    contiguous: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)
    prompt_tokens: int = 0
    found_tokens: int = 0
    copies: int = 0
    preemptions: int = 0


@dataclass
class _Sample:
    index: tuple[int, int]
    prompt: list[int]
    generator: torch.Generator
    table: BlockTable | None = None
    new: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


@torch.no_grad()
def paged_generate(
    model: PreTrainedModel,
    cache: PagedCache,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    num_samples: int = 1,
    do_sample: bool = False,
    eos_token_id: int | None = None,
    seed: int = 0,
) -> tuple[list[list[list[int]]], PagedTrace]:
    """
    Continue prompts of any lengths, as many at a time as the blocks hold.

    Waiting prompts enter in their order as soon as their blocks are free. If the running ones grow out of the blocks,
    the last one to enter gives its blocks back and waits to be computed again (vLLM's recomputation). Each sample
    draws from a generator of its own, so that the result does not depend on who ran beside it.

    Args:
        model (`PreTrainedModel`):
            A causal LM with keys and values in each layer.
        cache ([`PagedCache`]):
            Its cache. Blocks of earlier calls are found again.
        prompts (`Sequence[Sequence[int]]`):
            Token ids of the prompts.
        max_new_tokens (`int`):
            Most tokens of a sample.
        num_samples (`int`, *optional*, defaults to `1`):
            Samples a prompt; they share the prompt's blocks.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether to sample; otherwise the most probable token is taken.
        eos_token_id (`int`, *optional*):
            Token that ends a sample, and is its last one.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `tuple[list[list[list[int]]], PagedTrace]`: the new tokens by prompt and sample, and what it took.

    Raises:
        [`OutOfBlocksError`]: if the blocks do not hold a single sample.
        `ValueError`: for an empty prompt, or counts that are not positive.
    """
    if max_new_tokens < 1 or num_samples < 1:
        raise ValueError(
            f"`max_new_tokens` and `num_samples` must be at least 1, got {max_new_tokens} and {num_samples}."
        )
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("Each prompt needs at least one token: give the BOS token for an empty one.")
    return _Scheduler(model, cache, max_new_tokens, do_sample, eos_token_id).run(prompts, num_samples, seed)


class _Scheduler:
    def __init__(self, model, cache, max_new_tokens, do_sample, eos_token_id):
        self.model, self.cache, self.pool = model, cache, cache.pool
        self.max_new_tokens, self.do_sample, self.eos_token_id = max_new_tokens, do_sample, eos_token_id
        self.waiting: deque[list[_Sample]] = deque()  # samples that share a prompt wait together
        self.running: list[_Sample] = []
        self.trace = PagedTrace()

    def run(self, prompts, num_samples, seed):
        for index, prompt in enumerate(prompts):
            generators = [torch.Generator().manual_seed(seed + 7919 * index + k) for k in range(num_samples)]
            self.waiting.append(
                [_Sample((index, k), list(prompt), generator) for k, generator in enumerate(generators)]
            )
        samples = [sample for group in self.waiting for sample in group]
        try:
            while self.waiting or self.running:
                self._admit()
                self._decode()
        finally:
            for sample in samples:
                if sample.table is not None:
                    sample.table.free()
        results = [[None] * num_samples for _ in prompts]
        for sample in samples:
            results[sample.index[0]][sample.index[1]] = sample.new
        return results, self.trace

    def _admit(self):
        while self.waiting:
            group = self.waiting[0]
            first, rest = group[0], group[1:]
            table, tokens = BlockTable(self.pool), first.tokens
            found = table.take_prefix(tokens)
            # A block to go on with for each of the group, lest it is sent back at once
            if table.blocks_needed(len(tokens) - found) + len(group) > self.pool.free_blocks and self.running:
                table.free()
                return
            self.waiting.popleft()
            self.trace.prompt_tokens += len(tokens)
            self.trace.found_tokens += found
            first.table = table
            logits = self._forward([first], [tokens[found:]])
            table.publish(tokens)
            for sample in rest:
                sample.table = table.fork()
            for sample in group:
                self._take(sample, logits[0])

    def _decode(self):
        if not self.running:
            return
        while sum(sample.table.blocks_needed(1) for sample in self.running) > self.pool.free_blocks:
            self._preempt()
        rows = list(self.running)
        logits = self._forward(rows, [[sample.new[-1]] for sample in rows])
        self._record(rows)
        self.running = []
        for sample, row in zip(rows, logits):
            sample.table.publish(sample.tokens)
            self._take(sample, row)

    def _forward(self, samples, tokens):
        copied = self.cache.copied_blocks
        inputs = self.cache.prepare([sample.table for sample in samples], tokens)
        self.trace.copies += self.cache.copied_blocks - copied
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return self.model(**inputs, **{CACHE: self.cache}, use_cache=True).logits[:, -1].float().cpu()

    def _take(self, sample, logits):
        if self.do_sample:
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=sample.generator))
        else:
            token = int(logits.argmax())
        sample.new.append(token)
        if token == self.eos_token_id or len(sample.new) == self.max_new_tokens:
            sample.table.free()
        else:
            self.running.append(sample)

    def _preempt(self):
        if len(self.running) == 1:
            raise OutOfBlocksError(
                f"{self.pool.num_blocks} blocks of {self.pool.block_size} tokens do not hold one sample of "
                f"{len(self.running[0].tokens)} tokens. Raise `num_blocks`."
            )
        sample = self.running.pop()
        sample.table.free()
        self.waiting.appendleft([sample])
        self.trace.preemptions += 1

    def _record(self, rows):
        lengths = [sample.table.length for sample in rows]
        if self.pool.used_blocks > max(self.trace.used, default=0):
            self.trace.tables = [list(sample.table.blocks) for sample in rows]
        self.trace.used.append(self.pool.used_blocks)
        self.trace.shared.append(self.pool.shared_blocks)
        self.trace.saved.append(self.pool.saved_blocks)
        self.trace.rows.append(len(rows))
        self.trace.contiguous.append(len(rows) * -(-max(lengths) // self.pool.block_size))
