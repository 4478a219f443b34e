"""
Reinforcement learning of a checkpoint of `recipes/compare_latent.py`: HRPO, or GRPO, which is HRPO without thinking.

```bash
python recipes/compare_latent_rl.py --checkpoint "outputs/latent/headline/runs/arm=latent_soft,rule=0,seed=0"
```

Some minutes on one CPU core, offline. It trains on problems that the checkpoint has not seen, and evaluates as
`recipes/compare_latent_arm.py` does, before and after. A run that was cut off begins anew.

Outputs, in `output_dir`: `log.jsonl`, `eval_samples.jsonl`, `run.json`, and the model.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_evidenceflow import HRPOConfig, HRPOTrainer, ThinkingIntervention, load_thinking_model
from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.callbacks.training_clock import TrainingClock
from hf_evidenceflow.recipes.compare_latent_arm import TaskArguments, cpu_settings, finish
from hf_evidenceflow.recipes.experiments.latent_evaluation import completion_tokens, greedy_scores
from hf_evidenceflow.recipes.experiments.sampled_scores import pass_means, sampled_scores
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import THOUGHT_TASKS


SAMPLED_PROBLEMS = 500


@dataclass
class LatentRLArguments(TaskArguments):
    """
    Args:
        checkpoint (`str`, *optional*, defaults to `"outputs/arm"`):
            Folder of the model; `{rule_seed}` and `{seed}` in it are replaced.
        seen_problems (`int`, *optional*, defaults to `32000`):
            Training problems that the checkpoint has seen; the training takes those after them.
        thinking (`bool`, *optional*, defaults to `True`):
            Whether to think in training and evaluation; without it this is GRPO.
        thinking_mode (`str`, *optional*):
            Mode of the thinking; by default the checkpoint's.
        thinking_settings (`dict`, *optional*):
            Further fields of the thinking config, for a checkpoint without thinking; in a YAML file only.
        rl_steps (`int`, *optional*, defaults to `60`):
            Optimizer steps.
        samples_per_step (`int`, *optional*, defaults to `128`):
            Completions a step, in groups of 8.
        learning_rate (`float`, *optional*, defaults to `1e-4`):
            Rate of all weights.
        samples (`int`, *optional*, defaults to `0`):
            Sampled completions of each of the first 500 problems after the training, for pass@1 and pass@k of so many,
            with thinking and without it; `0`: none.
        trainer_settings (`dict`, *optional*):
            Further fields of [`HRPOConfig`], such as `train_thought_tokens`; in a YAML file only.
    """

    checkpoint: str = "outputs/arm"
    seen_problems: int = 32_000
    thinking: bool = True
    thinking_mode: str | None = None
    thinking_settings: dict = field(default_factory=dict)
    rl_steps: int = 60
    samples_per_step: int = 128
    learning_rate: float = 1e-4
    samples: int = 0
    trainer_settings: dict = field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.samples_per_step < 8 or self.samples_per_step % 8:
            raise ValueError(f"`samples_per_step` must be a multiple of 8, got {self.samples_per_step}.")
        if self.rl_steps < 1:
            raise ValueError(f"`rl_steps` must be at least 1, got {self.rl_steps}.")
        if self.samples < 0:
            raise ValueError(f"`samples` must be at least 0, got {self.samples}.")

    def load_model(self):
        """The checkpoint in the mode that is trained."""
        folder = self.checkpoint.format(rule_seed=self.rule_seed, seed=self.seed)
        fields = dict(self.thinking_settings)
        if not self.thinking:
            fields = {"thinking_mode": "none"}
        elif self.thinking_mode is not None:
            fields["thinking_mode"] = self.thinking_mode
        return load_thinking_model(folder, **fields)


def reinforce(args: LatentRLArguments, model, problems: list[dict], tokenizer) -> float:
    """Trains the model; returns its seconds of training."""
    set_seed(args.seed)
    rows = Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in problems])
    rates = ("lr_thinking_residual_gate", "lr_thinking_residual_Lambda", "lr_thinking_projection", "lr_thinking_head")
    settings = HRPOConfig(
        **cpu_settings(args),
        max_steps=args.rl_steps,
        per_device_train_batch_size=args.samples_per_step,
        num_generations=8,
        max_completion_length=completion_tokens(tokenizer, problems),
        temperature=1.0,
        beta=0.0,
        learning_rate=args.learning_rate,
        warmup_steps=min(10, args.rl_steps // 4),
        lr_scheduler_type="constant_with_warmup",
        logging_steps=1,
        **dict.fromkeys(rates, args.learning_rate) | args.trainer_settings,
    )
    clock = TrainingClock()
    trainer = HRPOTrainer(
        model,
        THOUGHT_TASKS[args.task].reward,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[LogFileCallback(), clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return clock.seconds


def passes(args: LatentRLArguments, model, tokenizer, problems: list[dict]) -> dict[str, float]:
    """pass@1 and pass@k of sampled completions, as trained and (`_off`) without thinking."""
    metrics = {}
    for suffix, kind in {"": None, "_off": "off"}.items() if args.thinking else [("", None)]:
        with nullcontext() if kind is None else ThinkingIntervention(kind):
            scores = sampled_scores(
                model,
                tokenizer,
                problems,
                THOUGHT_TASKS[args.task].reward,
                args.samples,
                max_new_tokens=completion_tokens(tokenizer, problems),
                batch_size=args.eval_batch_size,
                seed=args.seed,
            )
        found = pass_means(scores, (1, args.samples))
        metrics |= {f"{args.evaluate_on}_{name}{suffix}": value for name, value in found.items()}
    return metrics


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(LatentRLArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    start = time.perf_counter()
    with training_run(args.output_dir, overwrite=True, rl=args) as run:
        tokenizer = args.tokenizer()
        train, problems = args.problems(args.seen_problems + args.rl_steps * args.samples_per_step // 8)
        model = args.load_model()
        before = greedy_scores(model, tokenizer, problems, THOUGHT_TASKS[args.task].reward, args.eval_batch_size)
        seconds = reinforce(args, model, train[args.seen_problems :], tokenizer)
        metrics = {f"{args.evaluate_on}_before": sum(before) / len(before), "train_seconds": seconds}
        if args.samples:
            metrics |= passes(args, model, tokenizer, problems[:SAMPLED_PROBLEMS])
        metrics = finish(args, run, model, tokenizer, problems, metrics)
    print(json.dumps(metrics), f"{time.perf_counter() - start:.0f} seconds")
    return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
