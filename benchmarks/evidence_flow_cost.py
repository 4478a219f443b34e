"""
Time and peak activation memory of layer-wise supervision against plain training, in one process.

```bash
python benchmarks/evidence_flow_cost.py --output results/evidence_flow_cost.json
```

A random Llama (hidden 512, 8 layers, vocabulary 32,000) on CPU in fp32, 4 x 256 tokens, forward and backward. `--size
study --threads 1` is the model and the arms of the Loss_p study instead, with the optimizer's step. All arms
of a table run in turn, round after round; a time ratio is the median over the rounds of arm / plain within a round.
Peak memory is what the allocator holds at most above the start of a step, gradients included, by torch's profiler; it
does not vary. Nothing else should run on the machine. About 25 minutes on two cores.
"""

import argparse
import platform

import torch
import transformers
from thinking_speed import in_turn, print_table
from timing import peak_memory
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import EvidenceFlow, EvidenceFlowConfig
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.report.run_record import git_revision


SIZES = {
    "benchmark": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
    },
    "study": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "tie_word_embeddings": True,
    },
}
BATCHES = {"benchmark": (4, 256), "study": (8, 64)}  # rows, tokens a row

ALL_TOKENS = {"token_fraction": 1.0}
ARMS = {
    "benchmark": {
        "plain": {"weight": 0.0},
        "mse": {"objective": "mse"},
        "cosine": {"objective": "cosine"},
        "normalized_mse": {"objective": "normalized_mse"},
        "mse, final norm": {"objective": "mse", "apply_final_norm": True},
        "cosine, final norm": {"objective": "cosine", "apply_final_norm": True},
        "nitp": {"objective": "nitp"},
        "cross_entropy (an eighth of the tokens)": {"objective": "cross_entropy"},
        "lens_kl (an eighth of the tokens)": {"objective": "lens_kl"},
        "cross_entropy, every:4, all tokens": {"objective": "cross_entropy", "layers": "every:4", **ALL_TOKENS},
        "cross_entropy, all layers and tokens": {"objective": "cross_entropy", **ALL_TOKENS},
    },
    "study": {
        "none": {"weight": 0.0},
        "mse": {"objective": "mse"},
        "mse_detached": {"objective": "mse", "detach_target": True},
        "zero": {"objective": "zero"},
        "shuffled": {"objective": "shuffled"},
        "cosine": {"objective": "cosine"},
        "ce_all": {"objective": "cross_entropy", **ALL_TOKENS},
        "ce_sparse": {"objective": "cross_entropy", "layers": "every:2", **ALL_TOKENS},
        "lens_kl": {"objective": "lens_kl", **ALL_TOKENS},
        "nitp": {"objective": "nitp"},
        "own_heads": {"objective": "deep_supervision", **ALL_TOKENS},
    },
}


def make_step(arm: dict, size: str, checkpointing: bool):
    """A forward and backward pass with the arm's supervision; at the study's size with the optimizer's step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[size])).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, SIZES[size]["vocab_size"], BATCHES[size], generator=generator)
    flow = EvidenceFlow(model, EvidenceFlowConfig(**arm))
    optimizer = None
    if size == "study":
        optimizer = torch.optim.AdamW([*model.parameters(), *flow.parameters()], lr=1e-4)

    def step():
        flow.attach()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        flow.remove()
        if optimizer is not None:
            optimizer.step()
        for parameter in [*model.parameters(), *flow.parameters()]:
            parameter.grad = None

    return step


def measure(rounds: int, size: str, checkpointing: bool) -> dict:
    """Ratios of all arms to the plain one."""
    memory = {}
    for name, arm in ARMS[size].items():
        step = make_step(arm, size, checkpointing)
        step()
        memory[name] = peak_memory(step)
        del step
    results = in_turn({name: make_step(arm, size, checkpointing) for name, arm in ARMS[size].items()}, rounds)
    plain = next(iter(memory.values()))
    for name, row in results.items():
        row["peak_mb"] = round(memory[name] / 1e6, 1)
        row["peak_ratio"] = round(memory[name] / plain, 3)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--size", choices=list(SIZES), default="benchmark")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each table (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    results = {
        "setting": {
            **SIZES[args.size],
            "rows and tokens a row": BATCHES[args.size],
            "rounds": args.rounds,
            "threads": args.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "git": git_revision(),
        }
    }
    tables = {"plain activations": False, "gradient checkpointing": True}
    for title, checkpointing in tables.items() if args.size == "benchmark" else [("one step", False)]:
        results[title] = measure(args.rounds, args.size, checkpointing)
        print_table(title, results[title])
        for name, row in results[title].items():
            print(f"  {name:40s} peak {row['peak_mb']:8.1f} MB   {row['peak_ratio']:.3f}x")
    if args.output:
        atomic_write_json(args.output, results)


if __name__ == "__main__":
    main()
