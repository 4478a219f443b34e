"""
One optimizer step of TRL's GRPO (transformers path) and of HRPO with its rollout engine, in one process.

```bash
python benchmarks/rollout_step.py --output results/rollouts/step.json
```

The model and the load of `rollout_speed.py`. A step: rollout, rewards, loss, backward, AdamW. The share of the rollout
is the time inside `_generate_single_turn`. `none` is HRPO without thinking: GRPO with the engine.
"""

import statistics
import string
import tempfile
import time

import torch
from datasets import Dataset
from rollout_speed import EndAt, make_load, make_model
from thinking_speed import SIZE, make_tokenizer, optimizer_step
from timing import compare, make_parser, prepare, print_table, setting
from transformers import LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer
from hf_evidenceflow.atomic_write import atomic_write_json


def make_prompts(sizes: list[int]) -> list[str]:
    """Texts of as many tokens; the tokenizer knows single letters."""
    random = torch.Generator().manual_seed(1)
    letters = string.ascii_lowercase
    return ["".join(letters[i] for i in torch.randint(0, 26, (size,), generator=random)) for size in sizes]


def end_rows_at(model, lengths: torch.Tensor) -> None:
    """Let all rollouts of the model end at these lengths."""
    original = model.generate

    def generate(input_ids, **kwargs):
        processors = LogitsProcessorList([EndAt(lengths, input_ids.shape[1], SIZE["eos_token_id"])])
        return original(input_ids=input_ids, logits_processor=processors, **kwargs)

    model.generate = generate


def timed(trainer) -> list[float]:
    """A list that receives the seconds of each rollout."""
    original, seconds = trainer._generate_single_turn, []

    def generate(*args, **kwargs):
        start = time.perf_counter()
        result = original(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    trainer._generate_single_turn = generate
    return seconds


def make_trainer(mode: str, tokenizer, load, group: int):
    """A trainer at its first step; mode `grpo` is TRL's own."""
    _, mask, lengths = load
    model = make_model("plain" if mode == "grpo" else mode)
    end_rows_at(model, lengths)
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if mode == "grpo" else (HRPOTrainer, HRPOConfig)
    config = config_class(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(mask),
        num_generations=group,
        max_completion_length=int(lengths.max()),
        temperature=1.0,
        beta=0.0,
        report_to="none",
        save_strategy="no",
    )
    trainer = trainer_class(
        model,
        lambda completions, **kwargs: [float(index % 2) for index in range(len(completions))],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": make_prompts(mask[::group].sum(1).tolist())}),
        processing_class=tokenizer,
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def measure(modes, prompts: int, group: int, divide: int, rounds: int) -> dict:
    """Steps in turn, the first mode being what the others are compared with."""
    load, tokenizer = make_load(prompts, group, divide), make_tokenizer()
    steps, rollouts = {}, {}
    for mode in modes:
        trainer = make_trainer(mode, tokenizer, load, group)
        batch = next(iter(trainer.get_train_dataloader()))
        rollouts[mode] = timed(trainer)
        steps[mode] = lambda trainer=trainer, batch=batch: optimizer_step(trainer, batch)
    rows = compare(steps, rounds)
    for mode, row in rows.items():
        row["rollout_share"] = round(statistics.median(rollouts[mode][1:]) / row["seconds"], 3)
        row["relative_time"] = round(1 / row["ratio"], 3)
    return rows


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--modes", nargs="+", default=["grpo", "none", "projection", "embedding"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--divide", type=int, default=5)
    args = parser.parse_args(argv)
    prepare(args)
    results = {"setting": setting(args, "rollout_step", argv), "points": []}
    for prompts in args.prompts:
        rows = measure(args.modes, prompts, args.group, args.divide, args.rounds)
        results["points"].append({"prompts": prompts, "group": args.group, "divide": args.divide, "table": rows})
        print_table(f"One step, {prompts} prompts x {args.group}, lengths / {args.divide}", rows)
        print({mode: row["rollout_share"] for mode, row in rows.items()})
        if args.output:
            atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
