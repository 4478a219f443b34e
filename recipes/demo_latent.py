"""
Thoughts that are sets: latent training against a written chain and against pause tokens, as one picture.

```bash
python recipes/demo_latent.py --output_dir outputs/demo-latent
```

A ball is under one of 12 cups, and each problem has eight moves, of which three may have been left out: where the ball
can be is a set of cups, which no single token can say. A tiny Qwen2 learns to tell which of two cups can hold it, from
the same random weights, on the same problems and in as many steps, in three ways:

- latent: it thinks in mixtures of tokens (mode `soft`), taught the set of cups after each move;
- discrete: it writes a cup for each move, in every second problem one of any run that the moves allow;
- pause: it reads as many placeholders, taught the same sets.

Then the first one thinks without its states, and with those of another problem. What it shows: the answer comes out of
the states. What it does not show: anything about other seeds, other tasks or pretrained models.

About two minutes on a CPU core, offline; `recipes/demo.py` runs it after its own part.

Outputs, in `output_dir`: `latent_accuracy.png`, `latent.md` (the table), `metrics.json`, `run.json`, the three models,
and `problems.jsonl`, test problems for `recipes/probe.py`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer, ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.statistics import Interval, proportion_interval
from hf_evidenceflow.evaluation.thinking_audit import TRAINED, audit_thinking
from hf_evidenceflow.recipes.command_line.progress import ProgressLines
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import build_set_tokenizer, set_runs, set_tracking_reward, split_set_problems


# Picked by `recipes/compare_latent.py` on validation problems of another rule and seed
LEARNING_RATES = {"latent": 1e-2, "discrete": 3e-3, "pause": 3e-3}
ARMS = {
    "latent": {"thinking_mode": "soft", "objective": "soft_targets", "teacher_forcing_steps": 0.5},
    "discrete": {"thinking_mode": "none", "objective": "answer", "latent_curriculum": [0]},
    "pause": {"thinking_mode": "pause", "objective": "soft_targets"},
}
# What is measured: label and color in the picture, and how strong that is
BARS = {
    "latent": ("latent,\nthinking on", COLOURS[0], 1.0),
    "latent, off": ("the same,\nthinking off", COLOURS[0], 0.45),
    "latent, shuffled": ("the same,\nother's states", COLOURS[0], 0.45),
    "discrete": ("written\nchain", COLOURS[1], 1.0),
    "pause": ("pause tokens,\nsame targets", COLOURS[2], 1.0),
}
CHANCE = 0.5
PICTURE = "latent_accuracy.png"


@dataclass
class LatentDemoArguments:
    """
    Sizes of the demonstration.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/demo-latent"`):
            Folder of the results.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems and the weights.
        latent_steps (`int`, *optional*, defaults to `1000`):
            Steps of each of the three trainings.
        batch_size (`int`, *optional*, defaults to `32`):
            Problems a step, each seen once.
        moves (`int`, *optional*, defaults to `8`):
            Moves of a problem. With fewer, two layers learn to do them all at once, and pause tokens catch up.
        test_problems (`int`, *optional*, defaults to `500`):
            Problems of the evaluation, whose sequences of moves are not trained on.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether a former demonstration in `output_dir` is replaced.
    """

    output_dir: str = "outputs/demo-latent"
    seed: int = 0
    latent_steps: int = 1000
    batch_size: int = 32
    moves: int = 8
    test_problems: int = 500
    overwrite: bool = True


def train_rows(problems: Sequence[dict], arm: str, seed: int) -> list[dict]:
    """What an arm is taught: the sets, or a chain of cups, of which every second one is any legal run."""
    if arm != "discrete":
        return [{name: row[name] for name in ("prompt", "answer", "thought_targets")} for row in problems]
    return [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            "steps": set_runs(row, 1, seed)[0] if n % 2 else row["steps"],
        }
        for n, row in enumerate(problems)
    ]


def untrained_model(tokenizer, seed: int) -> ThinkingQwen2ForCausalLM:
    """A Qwen2 of two layers, the same for all arms."""
    set_seed(seed)
    config = ThinkingQwen2Config(
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
        thinking_mode="none",
    )
    return ThinkingQwen2ForCausalLM(config)


def train(args: LatentDemoArguments, arm: str, problems: Sequence[dict], tokenizer) -> ThinkingQwen2ForCausalLM:
    settings = LatentSFTConfig(
        str(Path(args.output_dir) / arm),
        **ARMS[arm],
        step_separator="",
        max_steps=args.latent_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=LEARNING_RATES[arm],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=0.05,
        adam_beta2=0.99,
        weight_decay=0.0,
        seed=args.seed,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=max(1, args.latent_steps // 5),
    )
    trainer = LatentSFTTrainer(
        untrained_model(tokenizer, args.seed),
        args=settings,
        train_dataset=train_rows(problems, arm, args.seed),
        processing_class=tokenizer,
        callbacks=[ProgressLines(arm.capitalize(), "loss")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer.model.eval()


def evaluate(args: LatentDemoArguments, arm: str, model, tokenizer, problems: Sequence[dict]) -> dict[str, Interval]:
    """Share of right greedy answers with its 95 % interval, of latent thinking also without its states."""
    settings = {"max_new_tokens": args.moves + 4, "batch_size": 500, "seed": args.seed}
    if arm == "latent":
        audit = audit_thinking(
            model, tokenizer, problems, set_tracking_reward, interventions=("off", "shuffle"), **settings
        )
        rows = {kind: Interval(**row["accuracy"]) for kind, row in audit.summary().items()}
        return {"latent": rows[TRAINED], "latent, off": rows["off"], "latent, shuffled": rows["shuffle"]}
    right = 0.0
    for batch in generate_completions(model, tokenizer, [row["prompt"] for row in problems], **settings):
        answers = [problems[item.index]["answer"] for item in batch]
        right += sum(set_tracking_reward(completions=[item.text for item in batch], answer=answers))
    return {arm: proportion_interval(int(right), len(problems))}


def draw(scores: Mapping[str, Interval], args: LatentDemoArguments, path: Path) -> str:
    """The picture; returns where it is, or why it is not there."""
    try:
        figure = new_figure((7.6, 3.6))
    except ImportError as error:
        return f"not drawn. {error}"
    panel = figure.subplots()
    for place, (name, (_, color, alpha)) in enumerate(BARS.items()):
        value, low, high = scores[name]
        panel.bar(place, value, 0.66, color=color, alpha=alpha)
        ends = [[value - low], [high - value]]
        panel.errorbar(place, value, ends, fmt="none", ecolor="0.15", capsize=4, elinewidth=1.3)
        panel.text(place, high + 0.02, f"{value:.2f}", ha="center", fontsize=11, fontweight="bold")
    panel.axhline(CHANCE, color="0.3", linewidth=1, linestyle="--")
    panel.text(len(BARS), CHANCE + 0.015, "chance", ha="right", fontsize=9, color="0.3")
    panel.set_xlim(-0.6, len(BARS))
    panel.set_xticks(range(len(BARS)), [label for label, _, _ in BARS.values()])
    panel.set_ylim(0, 1.12)
    panel.set_yticks([0, 0.25, 0.5, 0.75, 1])
    title = f"Under which cup can the ball be after {args.moves} moves, some of them optional?"
    finish_panel(panel, title, y="right answers")
    panel.grid(visible=False)
    return str(save_figure(figure, path))


def show(scores: Mapping[str, Interval], seconds: float, args: LatentDemoArguments) -> str:
    """The table in the terminal; returns it in Markdown with the sentences on what it shows."""
    title = "Set tracking, right answers"
    table = Table("", "right", "95 % interval", title=title)
    rows = [[name, f"{value:.2f}", f"{low:.2f} to {high:.2f}"] for name, (value, low, high) in scores.items()]
    for row in rows:
        table.add_row(*row)
    right = {name: interval.value for name, interval in scores.items()}
    sentence = (
        f"After {args.latent_steps} steps of {args.batch_size} problems, thinking in states is right in "
        f"{right['latent']:.2f} of {args.test_problems} problems with new sequences of moves; the same weights "
        f"without their states in {right['latent, off']:.2f}, with those of another problem in "
        f"{right['latent, shuffled']:.2f}. A written chain of cups reaches {right['discrete']:.2f}, as many pause "
        f"tokens with the same targets {right['pause']:.2f}; chance is {CHANCE}. This shows that the answer comes out "
        "of the states, on a task made for it, in one seed. It says nothing about other "
        f"tasks or pretrained models; results/latent has the study. {seconds:.0f} seconds."
    )
    Console().print(table)
    print(sentence)
    return "\n".join(
        [markdown_table([title, "", "95 % interval"], rows), "", sentence, "", f"![{title}]({PICTURE})", ""]
    )


def latent_demo(args: LatentDemoArguments) -> tuple[dict[str, dict], str]:
    """Train and evaluate the arms and draw the picture; returns the metrics and a text in Markdown."""
    start = time.perf_counter()
    tokenizer = build_set_tokenizer()
    problems = split_set_problems(
        train=args.latent_steps * args.batch_size, test=args.test_problems, seed=args.seed, moves=args.moves
    )
    shown = [
        json.dumps({name: row[name] for name in ("prompt", "answer", "thought_targets")}) for row in problems["test"]
    ]
    atomic_write_text(Path(args.output_dir) / "problems.jsonl", "\n".join(shown[:4]) + "\n")
    scores: dict[str, Interval] = {}
    for arm in ARMS:
        model = train(args, arm, problems["train"], tokenizer)
        scores |= evaluate(args, arm, model, tokenizer, problems["test"])
    print(f"Picture: {draw(scores, args, Path(args.output_dir) / PICTURE)}")
    markdown = show(scores, time.perf_counter() - start, args)
    return {name: {"accuracy": interval._asdict()} for name, interval in scores.items()}, markdown


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(LatentDemoArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with training_run(args.output_dir, overwrite=args.overwrite, demo=args) as run:
        metrics, markdown = latent_demo(args)
        atomic_write_text(Path(args.output_dir) / "latent.md", markdown)
        atomic_write_json(Path(args.output_dir) / "metrics.json", metrics)
        run.record.add(metrics=metrics)
    return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
