"""
One arm of `recipes/compare_latent.py` with one seed: training, and greedy evaluations with and without its thinking.

```bash
python recipes/compare_latent_arm.py --output_dir outputs/arm --arm latent_soft --learning_rate 0.003
```

A minute or two on one CPU core at the default sizes, offline. All arms train with [`LatentSFTTrainer`], from the same
random weights and on problems that they see once, and are graded on what stock `generate` writes. A run that was cut
off begins anew.

Outputs, in `output_dir`: `log.jsonl`, `eval_samples.jsonl` (score of each problem), `run.json`, and the model.
"""

import json
import time
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer, load_looped_model
from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.callbacks.training_clock import TrainingClock
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.recipes.experiments.latent_arms import LATENT_ARMS, LatentArm, training_rows
from hf_evidenceflow.recipes.experiments.latent_evaluation import evaluate_thinking
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import THOUGHT_TASKS, set_runs
from hf_evidenceflow.trainers.latent_setup import placeholder_id


SPLITS = ("validation", "test")


# Legal chains of a problem, for the arms that mix them in
LEGAL_RUNS = {"sets": set_runs}


@dataclass
class TaskArguments:
    """
    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/arm"`):
            Folder of the arm and seed.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems, the weights and the sampling.
        task (`str`, *optional*, defaults to `"sets"`):
            One of [`THOUGHT_TASKS`].
        task_settings (`dict`, *optional*):
            Arguments of the task's generator, such as `moves`; in a YAML file only.
        rule_seed (`int`, *optional*):
            Which permutations the moves of set tracking are; goes into `task_settings`.
        evaluate_on (`str`, *optional*, defaults to `"validation"`):
            `"validation"` or `"test"`: the only held-out problems that are made.
        eval_problems (`int`, *optional*, defaults to `2000`):
            Their number.
        eval_batch_size (`int`, *optional*, defaults to `500`):
            Completions that are generated at once.
    """

    output_dir: str = "outputs/arm"
    seed: int = 0
    task: str = "sets"
    task_settings: dict = field(default_factory=dict)
    rule_seed: int | None = None
    evaluate_on: str = "validation"
    eval_problems: int = 2000
    eval_batch_size: int = 500

    def __post_init__(self):
        for name, known in (("task", THOUGHT_TASKS), ("evaluate_on", SPLITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        check_least(self, eval_problems=1, eval_batch_size=1)
        if self.rule_seed is not None:
            self.task_settings = {**self.task_settings, "rule_seed": self.rule_seed}

    def problems(self, train: int) -> tuple[list[dict], list[dict]]:
        """So many problems to train on, and those of `evaluate_on`; those of the other split are not made."""
        sizes = {**dict.fromkeys(SPLITS, 0), self.evaluate_on: self.eval_problems, "train": train}
        problems = THOUGHT_TASKS[self.task].split(**sizes, seed=self.seed, **self.task_settings)
        return problems["train"], problems[self.evaluate_on]

    def tokenizer(self):
        """The task's tokenizer, which takes some of the task's settings."""
        build = THOUGHT_TASKS[self.task].build_tokenizer
        known = signature(build).parameters
        return build(**{name: value for name, value in self.task_settings.items() if name in known})


@dataclass
class LatentArmArguments(TaskArguments):
    """
    Args:
        arm (`str`, *optional*, defaults to `"latent_soft"`):
            One of [`LATENT_ARMS`].
        train_steps (`int`, *optional*, defaults to `1000`):
            Optimizer steps.
        batch_size (`int`, *optional*, defaults to `32`):
            Problems a step.
        learning_rate (`float`, *optional*, defaults to `3e-3`):
            Peak of a cosine with 5 % of warm-up and a tenth at its end.
        adam_beta2 (`float`, *optional*, defaults to `0.99`):
            Adam's decay of the second moment.
        hidden_size, num_layers (`int`, *optional*, default to `64` and `2`):
            Sizes of the Qwen2.
        trainer_settings (`dict`, *optional*):
            Fields of [`LatentSFTConfig`] in the place of the arm's, such as `distill_weight`; in a YAML file only.
        num_loops (`int`, *optional*):
            Loops of an arm that loops, in the place of its own.
    """

    arm: str = "latent_soft"
    train_steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-3
    adam_beta2: float = 0.99
    hidden_size: int = 64
    num_layers: int = 2
    trainer_settings: dict = field(default_factory=dict)
    num_loops: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.arm not in LATENT_ARMS:
            raise ValueError(f"`arm` must be one of {', '.join(LATENT_ARMS)}, got {self.arm!r}.")
        if LATENT_ARMS[self.arm].chain == "mixed" and self.task not in LEGAL_RUNS:
            raise ValueError(f"`arm={self.arm}` needs a task with legal runs: {', '.join(LEGAL_RUNS)}.")
        if self.num_loops is not None and not LATENT_ARMS[self.arm].loops:
            raise ValueError(f"`num_loops={self.num_loops}` needs an arm that loops, got `arm={self.arm}`.")
        check_least(self, train_steps=1, batch_size=1)


def cpu_settings(args: TaskArguments) -> dict:
    """What the trainings of the study have in common."""
    return {
        "output_dir": args.output_dir,
        "seed": args.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "weight_decay": 0.0,
        "adam_beta2": 0.99,
        "max_grad_norm": 1.0,
    }


def save_untrained(args: LatentArmArguments, arm: LatentArm, settings, tokenizer, folder: str) -> None:
    """The same random weights for all arms of a seed."""
    set_seed(args.seed)
    sizes = {
        "hidden_size": args.hidden_size,
        "intermediate_size": 11 * args.hidden_size // 4,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
    }
    model_from_scratch("qwen2", sizes, tokenizer).save_pretrained(folder)
    if arm.loops:
        loops = {**arm.loops, "loop_token_id": placeholder_id(settings, tokenizer)}
        if args.num_loops is not None:
            loops["num_loops"] = args.num_loops
        load_looped_model(folder, **loops).save_pretrained(folder)


def train_arm(args: LatentArmArguments, arm: LatentArm, problems: list[dict], tokenizer):
    """The trained model, and its seconds of training."""
    thoughts = max(len(problem["thought_targets"]) for problem in problems)
    rows = training_rows(problems, arm, args.seed, LEGAL_RUNS.get(args.task))
    settings = LatentSFTConfig(
        **cpu_settings(args) | {"adam_beta2": args.adam_beta2},
        **arm.trainer_settings(thoughts, args.train_steps) | args.trainer_settings,
        step_separator="",
        max_steps=args.train_steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, args.train_steps // 20),
        logging_steps=max(1, args.train_steps // 20),
    )
    clock = TrainingClock()
    with TemporaryDirectory() as start:
        save_untrained(args, arm, settings, tokenizer, start)
        trainer = LatentSFTTrainer(
            start,
            args=settings,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[LogFileCallback(), clock],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return trainer.model, clock.seconds


def finish(args: TaskArguments, run, model, tokenizer, problems: list[dict], metrics: dict) -> dict:
    """Evaluate a trained model and write the record and the scores; returns the metrics."""
    reward = THOUGHT_TASKS[args.task].reward
    scores = evaluate_thinking(model, tokenizer, problems, reward, args.eval_batch_size)
    means = {f"{args.evaluate_on}_{name}": sum(values) / len(values) for name, values in scores.items()}
    rows = [dict(zip(("id", *scores), (index, *values))) for index, values in enumerate(zip(*scores.values()))]
    atomic_write_text(Path(args.output_dir) / "eval_samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run.record.add(metrics=metrics | means)
    return metrics | means


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(LatentArmArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    start = time.perf_counter()
    with training_run(args.output_dir, overwrite=True, arm=args) as run:
        tokenizer = args.tokenizer()
        train, held_out = args.problems(args.train_steps * args.batch_size)
        model, seconds = train_arm(args, LATENT_ARMS[args.arm], train, tokenizer)
        metrics = finish(args, run, model, tokenizer, held_out, {"train_seconds": seconds})
    print(json.dumps(metrics), f"{time.perf_counter() - start:.0f} seconds")
    return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
