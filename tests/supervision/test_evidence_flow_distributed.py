"""Two processes on CPU (gloo) give the gradients of one."""

import pytest
import torch
import torch.distributed as dist
from accelerate import debug_launcher
from tiny_families import tiny_causal_lm, token_ids

from hf_evidenceflow import evidence_flow


SETTINGS = [{"objective": "mse"}, {"objective": "nitp"}, {"objective": "deep_supervision", "token_fraction": 1.0}]


def uneven_batch():
    ids = token_ids(4, 11, seed=2)
    labels = ids.clone()
    labels[0, 2:] = -100
    labels[1, 7:] = -100
    labels[3] = -100
    return {"input_ids": ids, "labels": labels}


def two_step_gradients(model, batches, total, scale, **settings):
    with evidence_flow(model, **settings) as flow:
        for batch in batches:
            (scale * model(**batch, num_items_in_batch=total).loss).backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return found | {f"own:{name}": p.grad for name, p in flow.own_modules.named_parameters()}


def compare_on_each_rank():
    torch.set_num_threads(1)
    rank = dist.get_rank()
    batch = uneven_batch()
    total = (batch["labels"][:, 1:] != -100).sum()
    for settings in SETTINGS:
        # Accumulation: two micro-batches of one row a rank, the last rank's last one without any label
        rows = [slice(rank, rank + 1), slice(2 + rank, 3 + rank)]
        micro = [{name: value[row] for name, value in batch.items()} for row in rows]
        model = torch.nn.parallel.DistributedDataParallel(tiny_causal_lm("llama").double().train())
        # DDP averages over ranks, where one process sums
        actual = two_step_gradients(model, micro, total, dist.get_world_size(), **settings)
        # Each rank computes the whole batch too; averaging equal gradients changes nothing
        alone = tiny_causal_lm("llama").double().train()
        expected = two_step_gradients(alone, [batch], total, 1.0, **settings)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            gap = (actual[name] - gradient).abs().max().item()
            assert gap <= 1e-5 * max(1.0, gradient.abs().max().item()), f"{settings} {name}: {gap:.3g}"


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one():
    debug_launcher(compare_on_each_rank, num_processes=2)
