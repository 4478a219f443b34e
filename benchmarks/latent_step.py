"""
Time and peak memory of a latent training step, forward and backward, against SFT on a written chain of that length.

```bash
python benchmarks/latent_step.py --output results/latent/cost.json
python benchmarks/latent_step.py --threads 1 --cpu_time    # on a machine that others use too
```

The loss is the trainer's: KL of each thought to its target, or cross-entropy of each token of the chain, and
cross-entropy of the answer. Mode `soft`, but for the last candidate, whose state is the last hidden state. A table in
Markdown is written next to the JSON file.
"""

import time

import torch
import torch.nn.functional as F
from timing import compare, make_parser, peak_memory, prepare, print_table, setting

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.losses.latent import soft_target_losses
from hf_evidenceflow.models.thinking.latent_forward import LatentOptions
from hf_evidenceflow.report.tables import markdown_table


# Width, layers, vocabulary; rows, tokens of a prompt and of an answer
SIZES = {
    "d 64 x 2, vocabulary 64": ((64, 2, 64), (32, 24, 4)),
    "d 512 x 8, vocabulary 8,000": ((512, 8, 8000), (2, 32, 8)),
}
TIMES = {False: "wall-clock", True: "CPU time of the process (the machine was shared)"}
THOUGHTS = (1, 2, 4, 8, 16)
TARGET_WORDS = 8
# Options of the latent pass; "taught": the states of the targets, in one pass
CANDIDATES = {
    "SFT of the chain": None,
    "teacher-forced, one pass": "taught",
    "Jacobi, 2 iterations": LatentOptions(iterations=2),
    "sequential": LatentOptions(),
    "sequential, gradient of 1 thought": LatentOptions(backprop=1),
    "sequential, hidden states (coconut)": LatentOptions(),
}


def make_model(width, layers, vocabulary, mode):
    torch.manual_seed(0)
    return ThinkingQwen2ForCausalLM(
        ThinkingQwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=11 * width // 4,
            num_hidden_layers=layers,
            num_attention_heads=max(4, width // 64),
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            thinking_mode=mode,
            **({"thinking_count": 1, "thinking_placeholder_id": 2} if mode == "coconut" else {}),
        )
    ).train()


def make_steps(size, count):
    """By candidate, a forward and backward pass over one batch with `count` thoughts."""
    (width, layers, vocabulary), (rows, prompt, answer) = SIZES[size]
    models = {mode: make_model(width, layers, vocabulary, mode) for mode in ("soft", "coconut")}
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (rows, prompt + count + answer), generator=generator)
    latent = torch.zeros_like(ids, dtype=torch.bool)
    latent[:, prompt : prompt + count] = True
    target_ids = torch.randint(2, vocabulary, (rows, count, TARGET_WORDS), generator=generator)
    targets = target_ids, torch.full(target_ids.shape, 1 / TARGET_WORDS)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": count + answer + 1}

    def cross_entropy(logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")

    def step(model, how):
        if how is None:
            logits = model(**batch, use_cache=False).logits[:, :-1]
            loss = cross_entropy(logits, ids[:, prompt:])
        else:
            taught = {"latent_targets": targets} if how == "taught" else {"latent_options": how}
            logits = model(**batch, latent_mask=latent, **taught).logits[:, :-1]
            kl, _ = soft_target_losses(logits[:, :count], *targets)
            loss = kl.sum() + cross_entropy(logits[:, count:], ids[:, prompt + count :])
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    modes = {name: "coconut" if "coconut" in name else "soft" for name in CANDIDATES}
    return {name: lambda name=name, how=how: step(models[modes[name]], how) for name, how in CANDIDATES.items()}


def measure(size: str, count: int, rounds: int, clock=None) -> dict[str, dict[str, float]]:
    """Seconds, ratios and peak memory of all candidates; the first is what the others are compared with."""
    steps = make_steps(size, count)
    results = compare(steps, rounds, clock=clock)
    memory = {name: peak_memory(step) for name, step in steps.items()}
    plain = next(iter(memory.values()))
    for name, row in results.items():
        row["peak_mb"] = round(memory[name] / 1e6, 1)
        row["peak_ratio"] = round(memory[name] / plain, 3)
    return results


def markdown(results: dict) -> str:
    """Time and peak memory as multiples of SFT's, a table for each size."""
    about = results["setting"]
    parts = [
        "# What a latent step costs",
        "",
        f"`{about['command']}`: {about['cpu']}, {about['threads']} thread(s), {about['rounds']} rounds in turn, "
        f"{TIMES[about['cpu_time']]}. A step is a forward and a backward pass. Time is the median of its ratios to "
        "SFT of a written chain with as many tokens as there are thoughts, with the range over the rounds; memory is "
        "the peak of what the allocator holds, as a multiple of SFT's.",
    ]
    for size in SIZES:
        _, (rows, prompt, answer) = SIZES[size]
        table = []
        for name in CANDIDATES:
            cells = [name]
            for count in THOUGHTS:
                row = results[f"{size}, {count} thoughts"][name]
                if "ratio" in row and name != next(iter(CANDIDATES)):
                    cells.append(
                        f"{1 / row['ratio']:.2f} ({1 / row['ratio_max']:.2f} to {1 / row['ratio_min']:.2f}), "
                        f"memory {row['peak_ratio']:.2f}"
                    )
                else:
                    cells.append(f"{1000 * row['seconds']:.0f} ms, {row['peak_mb']:.0f} MB")
            table.append(cells)
        title = f"{rows} rows of {prompt} tokens of prompt and {answer} of answer"
        parts += ["", f"## {size}", "", f"{title}; columns: thoughts.", ""]
        parts.append(markdown_table(["", *map(str, THOUGHTS)], table))
    return "\n".join([*parts, ""])


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument("--cpu_time", action="store_true", help="count the seconds that this process has a core")
    args = parser.parse_args(argv)
    prepare(args)
    clock = time.process_time if args.cpu_time else None
    results: dict = {"setting": setting(args, "latent_step", argv)}
    for size in SIZES:
        for count in THOUGHTS:
            title = f"{size}, {count} thoughts"
            results[title] = measure(size, count, args.rounds, clock)
            print_table(title, results[title])
    if args.output:
        atomic_write_json(args.output, results)
        atomic_write_text(args.output.with_suffix(".md"), markdown(results))
    return results


if __name__ == "__main__":
    main()
