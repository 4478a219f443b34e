"""
One optimizer step of TRL's GRPO and of HRPO, with a group's prompt computed once or in buckets, in one process.

```bash
python benchmarks/rollout_step.py --output results/rollouts/step.json
```

The model of `rollout_speed.py` and its load, GSM8K's lengths; `passages` has prompts of 1,350 to 1,650 tokens. A step:
rollout, rewards, loss, backward, AdamW. TRL's is the transformers path, `grpo_continuous` the same with its continuous
batching. `buckets` and `shared` are the two updates of HRPO with thinking (mode `--thinking`), `none` is `shared`
without. The share of the rollout is the time inside `_generate_single_turn`; columns are the positions that a forward
pass of the update computes; the peak is of a whole step, above its start.
"""

import itertools
import statistics
import string
import tempfile
import time

import torch
from datasets import Dataset
from rollout_speed import SPREAD, EndAt, make_load, make_model
from thinking_speed import SIZE, make_tokenizer, optimizer_step
from timing import compare, make_parser, peak_memory, prepare, print_table, setting
from transformers import LogitsProcessorList
from trl import GRPOConfig, GRPOTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.rollouts.packed_prompts import pack_prompts
from hf_evidenceflow.trainers.length_buckets import length_buckets


PROMPTS = {"gsm8k": (80, 250), "documents": (500, 700), "passages": (1350, 1650)}
SIZES = {
    "base": SIZE,
    "small": SIZE
    | {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
}
MODES = ("grpo", "grpo_continuous", "buckets", "shared", "none")


def make_prompts(sizes: list[int]) -> list[str]:
    """Texts of as many tokens; the tokenizer knows single letters."""
    random = torch.Generator().manual_seed(1)
    letters = string.ascii_lowercase
    return ["".join(letters[i] for i in torch.randint(0, 26, (size,), generator=random)) for size in sizes]


def end_rows_at(model, lengths: torch.Tensor) -> None:
    """Let all rollouts of the model end at these lengths."""
    original = model.generate

    def generate(input_ids, **kwargs):
        processors = LogitsProcessorList(
            [EndAt(lengths.to(input_ids.device), input_ids.shape[1], SIZE["eos_token_id"])]
        )
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


def make_trainer(mode: str, tokenizer, load, group: int, thinking: str, size: str = "base", use_cpu: bool = True):
    """A trainer at its first step."""
    _, mask, lengths = load
    is_trl = mode.startswith("grpo")
    model = make_model("plain" if is_trl else "none" if mode == "none" else thinking, SIZES[size])
    end_rows_at(model, lengths)
    trainer_class, config_class = (GRPOTrainer, GRPOConfig) if is_trl else (HRPOTrainer, HRPOConfig)
    own = {"use_transformers_continuous_batching": True} if mode == "grpo_continuous" else {}
    own |= {} if is_trl else {"share_prompts_in_update": mode != "buckets", "parity_check_steps": 0}
    config = config_class(
        output_dir=tempfile.mkdtemp(),
        use_cpu=use_cpu,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(mask),
        num_generations=group,
        max_completion_length=int(lengths.max()),
        temperature=1.0,
        beta=0.0,
        report_to="none",
        save_strategy="no",
        **own,
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


def columns(load) -> dict[str, int]:
    """Positions that a pass over the load computes: padded, in buckets, with shared prompts."""
    ids, mask, lengths = load
    completions = torch.arange(int(lengths.max())) < lengths[:, None]
    used = torch.cat([mask, completions.long()], dim=1)
    rows = torch.cat([ids, completions.long()], dim=1)
    buckets = length_buckets(used, completions.shape[1], -(-len(used) // 8))
    return {
        "grpo": used.numel(),
        "buckets": sum(len(bucket.rows) * (bucket.columns.stop - bucket.columns.start) for bucket in buckets),
        "shared": sum(pack.ids.shape[1] for pack in pack_prompts(rows, used, completions.shape[1])),
    }


def measure(args, kind: str, prompts: int, group: int, spread: float = SPREAD, use_cpu: bool = True) -> dict:
    """Steps in turn, the first mode being what the others are compared with."""
    shortest, longest = PROMPTS[kind]
    load = make_load(prompts, group, args.divide, shortest=shortest, longest=longest, spread=spread)
    tokenizer = make_tokenizer()
    steps, rollouts, counted = {}, {}, columns(load)
    for mode in args.modes:
        trainer = make_trainer(mode, tokenizer, load, group, args.thinking, args.size, use_cpu)
        batch = next(iter(trainer.get_train_dataloader()))
        rollouts[mode] = timed(trainer)
        steps[mode] = lambda trainer=trainer, batch=batch: optimizer_step(trainer, batch)
    rows = compare(steps, args.rounds)
    for mode, row in rows.items():
        row["rollout_share"] = round(statistics.median(rollouts[mode][1:]) / row["seconds"], 3)
        row["update_seconds"] = row["seconds"] * (1 - row["rollout_share"])
        row["relative_time"] = round(1 / row.get("ratio", 1), 3)
        row["columns"] = counted[{"grpo_continuous": "grpo", "none": "shared"}.get(mode, mode)]
        first = rows[args.modes[0]]
        row["update_share"] = round(row["update_seconds"] / first["update_seconds"], 3)
        row["column_share"] = round(row["columns"] / first["columns"], 3)
        if args.memory:
            row["peak_mb"] = round(peak_memory(steps[mode]) / 2**20, 1)
    if args.memory:
        for row in rows.values():
            row["peak_ratio"] = round(row["peak_mb"] / rows[args.modes[0]]["peak_mb"], 3)
    return rows


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["grpo", "buckets", "shared", "none"])
    parser.add_argument("--thinking", default="projection")
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--load", nargs="+", choices=tuple(PROMPTS), default=["gsm8k"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[8])
    parser.add_argument("--groups", nargs="+", type=int, default=[8])
    parser.add_argument("--spreads", nargs="+", type=float, default=[SPREAD], help="of the completions' log-lengths")
    parser.add_argument("--divide", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="also take the peak memory of a step")
    args = parser.parse_args(argv)
    prepare(args)
    results = {"setting": setting(args, "rollout_step", argv), "points": []}
    for kind, prompts, group, spread in itertools.product(args.load, args.prompts, args.groups, args.spreads):
        rows = measure(args, kind, prompts, group, spread)
        point = {"load": kind, "prompts": prompts, "group": group, "spread": spread, "divide": args.divide}
        results["points"].append(point | {"table": rows})
        print_table(f"One step, {kind}, {prompts} prompts x {group}, spread {spread}, lengths / {args.divide}", rows)
        names = ("relative_time", "rollout_share", "columns", "column_share", "update_share")
        for mode, row in rows.items():
            print(f"  {mode}: { ({name: row[name] for name in names}) }", flush=True)
        if args.output:
            atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
