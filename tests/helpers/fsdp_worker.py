"""Generates with thinking models, whole and with weights that FSDP2 shards over the processes; each saves both."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

from hf_evidenceflow import RolloutEngine, collect_thinking, load_thinking_model


def make_model(checkpoint, mode):
    torch.manual_seed(7)
    fields = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6, "thinking_answer_start": None}
    model = load_thinking_model(checkpoint, thinking_mode=mode, **fields).eval()
    if mode != "none":
        for gate in (model.model.thinking_residual_gate_r, model.model.thinking_residual_gate_i):
            torch.nn.init.normal_(gate.weight, std=0.3)
    return model


def generate(model, prompts, ends):
    """Tokens; and of a thinking model which ones it thought at, and its states there."""
    with collect_thinking(engine=RolloutEngine()) as rollouts:
        tokens = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=ends,
        )
    found = {"tokens": tokens}
    for rollout in rollouts:
        found |= {"mask": rollout.mask, "states": rollout.states * rollout.mask[..., None]}
    return found


def main(checkpoint, output):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    prompts, results = torch.tensor([[11, 12, 13 + rank], [20, 21, 22 + rank]]), {}
    for mode in ("none", "projection", "embedding"):
        model = make_model(checkpoint, mode)
        # The rows of rank 1 end within three tokens, those of rank 0 go on
        ends = generate(model, prompts, None)["tokens"][:, 5].tolist() if rank else None
        expected = generate(model, prompts, ends)
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        found = generate(model, prompts, ends)
        for name in expected:
            results[f"{mode}.{name}.expected"], results[f"{mode}.{name}.found"] = expected[name], found[name]
    save_file({name: value.contiguous() for name, value in results.items()}, Path(output, f"{rank}.safetensors"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
