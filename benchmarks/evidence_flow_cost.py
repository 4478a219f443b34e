"""
Time and peak activation memory of layer-wise supervision against plain training, in one process.

```bash
python benchmarks/evidence_flow_cost.py --output results/evidence_flow_cost.json
```

A random Llama (hidden 512, 8 layers, vocabulary 32,000) on CPU in fp32, 4 x 256 tokens, forward and backward. All arms
of a table run in turn, round after round; a time ratio is the median over the rounds of arm / plain within a round.
Peak memory is what the allocator holds at most above the start of a step, gradients included, by torch's profiler; it
does not vary. Nothing else should run on the machine. About 25 minutes on two cores.
"""

import argparse
import json
import platform
from functools import partial

import torch
import transformers
from thinking_speed import in_turn, print_table
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import evidence_flow


SIZE = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
BATCH, LENGTH = 4, 256

ARMS = {
    "plain": {"weight": 0.0},
    "mse": {"objective": "mse"},
    "cosine": {"objective": "cosine"},
    "normalized_mse": {"objective": "normalized_mse"},
    "mse, final norm": {"objective": "mse", "apply_final_norm": True},
    "cosine, final norm": {"objective": "cosine", "apply_final_norm": True},
    "nitp": {"objective": "nitp"},
    "cross_entropy (an eighth of the tokens)": {"objective": "cross_entropy"},
    "lens_kl (an eighth of the tokens)": {"objective": "lens_kl"},
    "cross_entropy, every:4, all tokens": {"objective": "cross_entropy", "layers": "every:4", "token_fraction": 1.0},
    "cross_entropy, all layers and tokens": {"objective": "cross_entropy", "token_fraction": 1.0},
}


def make_step(arm: dict, checkpointing: bool):
    """A forward and backward pass with the arm's supervision."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZE)).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(3, SIZE["vocab_size"], (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))

    def step():
        with evidence_flow(model, **arm):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()

    return step


def peak_memory(step) -> int:
    """Bytes that the allocator holds at most above the start of a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(rounds: int, checkpointing: bool) -> dict:
    """Ratios of all arms to the plain one."""
    memory = {}
    for name, arm in ARMS.items():
        step = make_step(arm, checkpointing)
        step()
        memory[name] = peak_memory(step)
        del step
    results = in_turn({name: make_step(arm, checkpointing) for name, arm in ARMS.items()}, rounds)
    for name, row in results.items():
        row["peak_mb"] = round(memory[name] / 1e6, 1)
        row["peak_ratio"] = round(memory[name] / memory["plain"], 3)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each table (default: %(default)s)")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    results = {
        "setting": {
            **SIZE,
            "batch": BATCH,
            "length": LENGTH,
            "rounds": args.rounds,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        }
    }
    for title, checkpointing in (("plain activations", False), ("gradient checkpointing", True)):
        results[title] = measure(args.rounds, checkpointing)
        print_table(title, results[title])
        for name, row in results[title].items():
            print(f"  {name:40s} peak {row['peak_mb']:8.1f} MB   {row['peak_ratio']:.3f}x")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
