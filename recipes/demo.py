"""
The two main jobs on self-made problems: SFT warm-up of a tiny Qwen2, then GRPO and HRPO from the same checkpoint; and
latent training against a written chain and pause tokens (`demo_latent.py`). Tables, curves and a picture.

```bash
python recipes/demo.py --output_dir outputs/demo
```

About three minutes on two CPU cores, offline. The warm start is sloppy on purpose: most of its solutions leave out the
last step, so that RL has something to correct. What the first part shows is that the trainer learns. What it does not
show is that latent reasoning helps: at this size HRPO and GRPO come out the same. The second part is a task on which
states do help, where they were taught.

Outputs, in `output_dir`: `demo.md` (the tables), `reward_curves.png`, `latent_accuracy.png`, `metrics.json`,
`run.json`, the six models and `problems.jsonl`.
"""

import gc
import time
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, set_seed
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.statistics import mean_interval, pass_at_k, proportion_interval
from hf_evidenceflow.recipes.command_line.progress import ProgressLines
from hf_evidenceflow.recipes.demo_latent import LatentDemoArguments, latent_demo
from hf_evidenceflow.report.curves import plot_training_curves
from hf_evidenceflow.report.samples import print_samples
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import (
    build_word_problem_tokenizer,
    grade,
    gsm8k_reward,
    make_sloppy,
    prepare_gsm8k,
    split_word_problems,
)


MAX_NEW_TOKENS = 28


@dataclass
class DemoArguments:
    """
    Sizes of the demonstration.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/demo"`):
            Folder of the results.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems, the weights and the sampling.
        sft_steps (`int`, *optional*, defaults to `500`):
            Steps of the warm-up, with 64 solutions each.
        rl_steps (`int`, *optional*, defaults to `60`):
            Steps of GRPO and of HRPO.
        samples_per_step (`int`, *optional*, defaults to `64`):
            Completions per step, in groups of 8; 256 climbs more smoothly and takes three times as long.
        test_problems (`int`, *optional*, defaults to `200`):
            Problems of the evaluation, with 8 samples each.
        latent_steps (`int`, *optional*, defaults to `1000`):
            Steps of each of the three trainings of the second part.
        latent_test_problems (`int`, *optional*, defaults to `500`):
            Problems of its evaluation.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether a former demonstration in `output_dir` is replaced.
    """

    output_dir: str = "outputs/demo"
    seed: int = 0
    sft_steps: int = 500
    rl_steps: int = 60
    samples_per_step: int = 64
    test_problems: int = 200
    latent_steps: int = 1000
    latent_test_problems: int = 500
    overwrite: bool = True


def common_settings(args: DemoArguments, name: str) -> dict:
    return {
        "output_dir": str(Path(args.output_dir) / name),
        "seed": args.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }


def warm_up(args: DemoArguments, problems: list[dict], tokenizer) -> str:
    """Trains a tiny Qwen2 from scratch on sloppy solutions; returns its folder."""
    set_seed(args.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = make_sloppy(problems, seed=args.seed)
    dataset = Dataset.from_list(
        [{"prompt": row["question"] + "\n", "completion": row["answer"] + tokenizer.eos_token} for row in rows]
    )
    settings = SFTConfig(
        **common_settings(args, "warm-up"),
        max_steps=args.sft_steps,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        max_length=128,
        logging_steps=100,
    )
    trainer = SFTTrainer(
        Qwen2ForCausalLM(config),
        args=settings,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[ProgressLines("Warm-up", "loss")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return settings.output_dir


def reinforce(args: DemoArguments, name: str, checkpoint: str, dataset, tokenizer):
    """Trains `GRPO` or `HRPO` from a checkpoint; returns the model and its log."""
    set_seed(args.seed)
    settings = {
        **common_settings(args, name.lower()),
        "max_steps": args.rl_steps,
        "per_device_train_batch_size": args.samples_per_step,
        "num_generations": 8,
        "max_completion_length": MAX_NEW_TOKENS,
        "temperature": 1.0,
        "beta": 0.0,
        "learning_rate": 2e-4,
        "warmup_steps": 10,
        "lr_scheduler_type": "constant_with_warmup",
        "logging_steps": 1,
    }
    common = {"train_dataset": dataset, "processing_class": tokenizer, "callbacks": [ProgressLines(name, "reward")]}
    if name == "GRPO":
        model = Qwen2ForCausalLM.from_pretrained(checkpoint)
        trainer = GRPOTrainer(model, gsm8k_reward, args=GRPOConfig(**settings), **common)
    else:
        rates = dict.fromkeys(
            ("lr_thinking_residual_gate", "lr_thinking_residual_Lambda", "lr_thinking_projection"), 2e-4
        )
        model = load_thinking_model(checkpoint)
        trainer = HRPOTrainer(model, gsm8k_reward, args=HRPOConfig(**settings, **rates), **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer.model, trainer.state.log_history


def evaluate(model, tokenizer, dataset, seed: int) -> dict:
    """Greedy accuracy and pass@1, pass@8 from 8 samples per problem, each with its 95 % interval."""
    settings = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 400, "seed": seed}
    greedy, right = [], [0] * len(dataset)
    for batch in generate_completions(model, tokenizer, dataset["prompt"], **settings):
        greedy += [grade(item.text, dataset[item.index]["answer"]) for item in batch]
    sampled = generate_completions(model, tokenizer, dataset["prompt"], do_sample=True, num_samples=8, **settings)
    for batch in sampled:
        for item in batch:
            right[item.index] += grade(item.text, dataset[item.index]["answer"]) > 0
    return {
        "pass@1": mean_interval([count / 8 for count in right]),
        "pass@8": mean_interval([pass_at_k(8, count, 8) for count in right]),
        "greedy": proportion_interval(int(sum(greedy)), len(greedy)),
    }


def show(results: dict, seconds: float, args: DemoArguments) -> str:
    """The table in the terminal; returns it in Markdown with the sentence on what it shows."""
    columns = list(next(iter(results.values())))
    table = Table(title="Word problems, right answers (95 % interval)")
    rows = []
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, scores in results.items():
        cells = [f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in scores.values()]
        table.add_row(name, *cells)
        rows.append([name, *cells])
    before, grpo, hrpo = (scores["pass@1"].value for scores in results.values())
    sentence = (
        f"With {args.rl_steps} steps of {args.samples_per_step} samples, pass@1 went from {before:.2f} to {grpo:.2f} "
        f"with GRPO and to {hrpo:.2f} with HRPO (one seed, {args.test_problems} test problems): the trainer learns. "
        "It does not show that latent reasoning helps: at this size the two are expected to come out the same, and a "
        "difference between them is noise until shown otherwise over seeds. The warm start is sloppy on purpose. "
        f"{seconds:.0f} seconds."
    )
    Console().print(table)
    print(sentence)
    return "\n".join([markdown_table(["", *columns], rows), "", sentence, "", "![reward](reward_curves.png)", ""])


def draw_curves(logs: dict, path: Path) -> str:
    """Returns where they are, or why they are not there."""
    try:
        plot_training_curves(logs, path, keys=["reward"])
    except ImportError as error:
        return f"not drawn. {error}"
    return str(path)


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(DemoArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    start = time.perf_counter()
    with training_run(args.output_dir, overwrite=args.overwrite, demo=args) as run:
        tokenizer = build_word_problem_tokenizer()
        splits = split_word_problems(train=4000, test=args.test_problems, seed=args.seed)
        train, test = (
            prepare_gsm8k(Dataset.from_list(rows), conversational=False, system_prompt=None)
            for rows in splits.values()
        )
        checkpoint = warm_up(args, splits["train"], tokenizer)

        results, logs = {}, {}
        model = Qwen2ForCausalLM.from_pretrained(checkpoint)
        results["before"] = evaluate(model, tokenizer, test, args.seed)
        for name in ("GRPO", "HRPO"):
            model, logs[name] = reinforce(args, name, checkpoint, train, tokenizer)
            results[name] = evaluate(model, tokenizer, test, args.seed)
            gc.collect()

        shown = next(generate_completions(model, tokenizer, test["prompt"][:4], max_new_tokens=MAX_NEW_TOKENS))
        shown = sorted(shown, key=lambda item: item.index)
        answers = test["answer"][:4]
        print_samples(
            [item.prompt for item in shown],
            [item.text for item in shown],
            golds=answers,
            rewards=[grade(item.text, gold) for item, gold in zip(shown, answers)],
            title="HRPO, greedy",
        )
        folder = Path(args.output_dir)
        curves = draw_curves(logs, folder / "reward_curves.png")
        markdown = show(results, time.perf_counter() - start, args)
        metrics = {name: {key: value._asdict() for key, value in scores.items()} for name, scores in results.items()}

        sizes = {"latent_steps": args.latent_steps, "test_problems": args.latent_test_problems}
        latent_metrics, latent_markdown = latent_demo(LatentDemoArguments(args.output_dir, args.seed, **sizes))
        metrics |= latent_metrics
        atomic_write_text(folder / "demo.md", f"{markdown}\n{latent_markdown}")
        atomic_write_json(folder / "metrics.json", metrics)
        run.record.add(metrics=metrics)
        print(f"Table: {folder / 'demo.md'}\nCurves: {curves}")
    return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
