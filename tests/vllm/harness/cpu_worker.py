"""
The Triton kernels that vLLM's V2 model runner launches, as loops in PyTorch: PyPI has no Triton for CPUs.

`LLM(..., worker_cls="cpu_worker.TestWorker")` lets the V2 runner work there. For tests only: what is replaced computes
inputs, block tables and draws, nothing that thinking models change. Linear layers stay unpacked, so that weights can
be loaded into a running engine.
"""

import torch
from vllm.model_executor.layers import utils as layer_utils
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.worker.cpu_worker import CPUWorker  # before the runner's modules, which it patches
from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch
from vllm.v1.worker.gpu.sample import gumbel, logprob


class Kernel:
    """`kernel[grid](...)` of a function that does the work of the whole grid."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.function(grid, *args)


def apply_write(grid, output, stride, indices, starts, contents, ends, group_ids):
    flat = output.view(-1)
    begin = 0
    for index, start, end in zip(indices.tolist(), starts.tolist(), ends.tolist()):
        place = index * stride + start
        flat[place : place + end - begin] = contents[begin:end].to(flat.dtype)
        begin = end


def prepare_prefill_inputs(
    grid, input_ids, following, stride, lookahead, mapping, query_start, all_ids, all_stride, prefill, computed
):
    starts = query_start.tolist()
    for row, slot in enumerate(mapping.tolist()):
        done, total = int(computed[slot]), int(prefill[slot])
        if done >= total:
            continue
        count = starts[row + 1] - starts[row]
        input_ids[starts[row] : starts[row + 1]] = all_ids[slot, done : done + count]
        for ahead in range(lookahead):
            place = done + count + ahead
            following[ahead, slot] = all_ids[slot, place] if place < total else 0


def prepare_positions(grid, positions, lengths, mapping, query_start, computed, max_rows):
    starts = query_start.tolist()
    for row, slot in enumerate(mapping.tolist()):
        done, count = int(computed[slot]), starts[row + 1] - starts[row]
        lengths[row] = done + count
        positions[starts[row] : starts[row + 1]] = torch.arange(done, done + count)
    lengths[len(mapping) :] = 0


def combine_tokens(grid, input_ids, mapping, last, query_start, lengths, prefill, drafts, draft_stride, ends, indices):
    starts = query_start.tolist()
    for row, slot in enumerate(mapping.tolist()):
        indices[row] = starts[row + 1] - 1
        if lengths[row] > prefill[slot]:
            input_ids[starts[row + 1] - 1] = last[slot, 0]


def count_sampled(grid, sampled, rejected, lengths, ends, mapping, prefill):
    unfinished = lengths[: len(mapping)] < prefill[mapping]
    sampled[unfinished] = 0
    rejected.copy_(torch.where(unfinished, 0, 1 - sampled))


def post_update(
    grid, mapping, computed, last, bins, bin_stride, tokens, token_stride, sampled, rejected, query_start, all_ids,
    all_stride, totals,
):  # fmt: skip
    for row, slot in enumerate(mapping.tolist()):
        if slot < 0:
            continue
        if sampled[row] > 0:
            token, total = tokens[row, 0], int(totals[slot])
            last[slot, 0] = token
            all_ids[slot, total] = token
            totals[slot] = total + 1
            if bins is not None:
                bins[slot, token] += 1
        if query_start is not None:
            computed[slot] += query_start[row + 1] - query_start[row] - rejected[row]


def temperature(grid, logits, stride, mapping, temperatures, vocabulary):
    values = temperatures[mapping]
    logits /= torch.where(values == 0, 1.0, values)[:, None]


def gumbel_argmax(
    grid, places, place_stride, maxima, max_stride, cache, cache_stride, column_stride, column, logits, stride,
    mapping, seeds, positions, temperatures, vocabulary,
):  # fmt: skip
    scores = logits.float().clone()
    for row, slot in enumerate(mapping.tolist()):
        if temperatures[slot] != 0:
            seed = hash((int(seeds[slot]), int(positions[row]))) % 2**63
            generator = torch.Generator().manual_seed(seed)
            noise = torch.rand(vocabulary, generator=generator).clamp(min=1e-30)
            scores[row] -= (-noise.log()).log()
    maxima.fill_(-torch.inf)
    maxima[:, 0], places[:, 0] = scores.max(-1)


def chosen_logprobs(grid, output, logits, stride, ids, count, vocabulary):
    output.copy_(logits.float().log_softmax(-1).gather(1, ids))


def ranks(grid, output, logits, stride, ids, vocabulary):
    output.copy_((logits >= logits.gather(1, ids[:, None])).sum(-1))


def gather_block_tables(self, idx_mapping, num_reqs_padded, out=None, out_ptrs=None):
    tables = tuple(self.input_block_tables) if out is None else out
    for group, (source, target) in enumerate(zip(self.block_tables, tables)):
        target[:num_reqs_padded] = 0
        for row, slot in enumerate(idx_mapping.tolist()):
            count = int(self.num_blocks.np[group, slot])
            target[row, :count] = source.gpu[slot, :count]
    return tuple(table[:num_reqs_padded] for table in tables)


def compute_slot_mappings(self, idx_mapping, query_start_loc, positions, num_tokens_padded, out=None):
    mappings = self.slot_mappings if out is None else out
    mappings.fill_(PAD_SLOT_ID)
    starts = query_start_loc.tolist()
    for group, size in enumerate(self.kernel_block_sizes):
        for row, slot in enumerate(idx_mapping.tolist()):
            places = positions[starts[row] : starts[row + 1]]
            blocks = self.block_tables[group].gpu[slot, places // size].long()
            mappings[group, starts[row] : starts[row + 1]] = blocks * size + places % size
    return mappings[:, :num_tokens_padded]


def cut_distribution(logits, k, p):
    return topk_topp_sampler.apply_top_k_top_p_pytorch(logits, k, p, allow_cpu_sync=True)


def leave_unpacked(layer, remove_weight):
    layer.cpu_linear = torch.nn.functional.linear


def install() -> None:
    """Replace the kernels in this process."""
    kernels = {
        buffer_utils: {"_apply_write_kernel": apply_write},
        input_batch: {
            "_prepare_prefill_inputs_kernel": prepare_prefill_inputs,
            "_prepare_pos_seq_lens_kernel": prepare_positions,
            "_combine_sampled_and_draft_tokens_kernel": combine_tokens,
            "_get_num_sampled_and_rejected_kernel": count_sampled,
            "_post_update_kernel": post_update,
        },
        gumbel: {"_temperature_kernel": temperature, "_gumbel_sample_kernel": gumbel_argmax},
        logprob: {"_topk_log_softmax_kernel": chosen_logprobs, "_ranks_kernel": ranks},
    }
    for module, functions in kernels.items():
        for name, function in functions.items():
            assert hasattr(module, name), f"{module.__name__}.{name} is gone"
            setattr(module, name, Kernel(function))
    topk_topp_sampler.apply_top_k_top_p_triton = cut_distribution
    block_table.BlockTables.gather_block_tables = gather_block_tables
    block_table.BlockTables.compute_slot_mappings = compute_slot_mappings
    layer_utils.dispatch_cpu_unquantized_gemm = leave_unpacked


install()


class TestWorker(CPUWorker):
    """Its own name, so that no engine takes it by accident."""

    __test__ = False
