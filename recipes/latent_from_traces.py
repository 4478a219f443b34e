"""
Latent training of a pretrained model with targets from its own solutions, against controls from the same start.

```bash
python recipes/latent_from_traces.py --config recipes/configs/latent_from_traces/smollm2.yaml
```

An hour on one CPU core for a model of 135 M parameters. Set tracking in words, in four parts, each of which stays when
it is finished, so that the same command goes on, also with `--evaluate_on test` after `validation`:

1. `start/`: LoRA on discrete chains. They are random legal runs, so that the model's solutions of a problem differ.
2. `traces.jsonl`: several samples of that model for each of the problems that come next. Their steps, position by
   position, are the targets of the thoughts ([`thought_targets_from_traces`]); no oracle has a part in it.
3. A folder for each arm: the start's adapter is trained on, with as many steps for each arm, and evaluated with and
   without its thinking. The discrete arm gets a right trace of each problem, where there is one.
4. `report.md`, `report.json`: differences over the test problems. One seed: they say nothing about other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer, load_thinking_model
from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.callbacks.training_clock import TrainingClock
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.recipes.compare_latent_arm import TaskArguments, cpu_settings
from hf_evidenceflow.recipes.experiments.latent_arms import LATENT_ARMS, training_rows
from hf_evidenceflow.recipes.experiments.latent_evaluation import evaluate_thinking
from hf_evidenceflow.recipes.experiments.latent_traces import (
    problems_with_targets,
    sample_traces,
    trace_facts,
    write_rows,
)
from hf_evidenceflow.recipes.experiments.problem_report import problem_report, problem_report_markdown
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import THOUGHT_TASKS, set_runs
from hf_evidenceflow.tasks.set_tracking import make_hasty


START, DISCRETE = "start", "discrete"
TRACES = "traces.jsonl"
ADAPTER = "adapter_model.safetensors"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class TracesArguments(TaskArguments):
    """
    Args:
        model_name_or_path (`str`, *optional*, defaults to `"HuggingFaceTB/SmolLM2-135M-Instruct"`):
            The pretrained model: name or folder.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Type of its frozen weights; the adapters are fp32.
        arms (`list[str]`, *optional*, defaults to `latent_soft discrete pause_soft`):
            Some of [`LATENT_ARMS`]; the first one is compared with the others.
        start_steps, arm_steps (`int`, *optional*, default to `200` and `150`):
            Optimizer steps of the start, and of each arm.
        start_learning_rate, learning_rate (`float`, *optional*, default to `2e-3` and `1e-3`):
            Peak rate of the start, and of the arms.
        batch_size (`int`, *optional*, defaults to `8`):
            Problems a step.
        traced_problems (`int`, *optional*, defaults to `600`):
            Problems that are sampled, and that all arms train on.
        samples (`int`, *optional*, defaults to `8`):
            Solutions sampled of each, at temperature 1.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the adapters, in all linear layers of the blocks.
        teacher_forcing_steps (`float`, *optional*, defaults to `0.7`):
            Share of the steps with the states of the targets, in arms that have such.
    """

    model_name_or_path: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    dtype: str = "bfloat16"
    arms: list[str] = field(default_factory=lambda: ["latent_soft", "discrete", "pause_soft"])
    start_steps: int = 200
    arm_steps: int = 150
    start_learning_rate: float = 2e-3
    learning_rate: float = 1e-3
    batch_size: int = 8
    traced_problems: int = 600
    samples: int = 8
    lora_r: int = 16
    teacher_forcing_steps: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        if self.task != "sets":
            raise ValueError(f"`task` must be 'sets', whose runs the start is trained on, got {self.task!r}.")
        if unknown := [arm for arm in self.arms if arm not in LATENT_ARMS]:
            raise ValueError(f"`arms` must be some of {', '.join(LATENT_ARMS)}, got {', '.join(unknown)}.")
        if mixed := [arm for arm in self.arms if LATENT_ARMS[arm].chain == "mixed"]:
            raise ValueError(f"`arms` has {', '.join(mixed)}, but a model's traces are no oracle's. Leave it out.")
        check_least(self, start_steps=1, arm_steps=1, batch_size=1, traced_problems=1, samples=1, lora_r=1)

    def folder(self, part: str) -> Path:
        return Path(self.output_dir) / part

    def scores(self, part: str) -> Path:
        return self.folder(part) / f"{self.evaluate_on}_samples.jsonl"

    def loading(self) -> dict:
        """How models are loaded."""
        # On a CPU the fused attention's gradient is slower at these lengths
        return {"dtype": getattr(torch, self.dtype), "attn_implementation": "eager"}

    def load_model(self):
        """The pretrained model, which writes its steps."""
        return load_thinking_model(self.model_name_or_path, thinking_mode="none", **self.loading())

    def load_start(self):
        """The pretrained model with the start's adapter, to be trained on."""
        return PeftModel.from_pretrained(self.load_model(), str(self.folder(START)), is_trainable=True)


def train(
    args: TracesArguments, arm: str, rows: list[dict], model, tokenizer, steps: int, rate: float, peft_config=None
) -> float:
    """Train an adapter and save it in `args.output_dir`, the part's own folder; returns the seconds of training."""
    latent = LATENT_ARMS[arm]
    thoughts = max(len(row.get("thought_targets") or row["steps"]) for row in rows)
    own = latent.trainer_settings(thoughts, steps)
    if arm == DISCRETE:
        # The same loss as of the arm's own settings, without the logits of the prompt
        own = {"thinking_mode": "none", "objective": "soft_targets", "teacher_forcing_steps": steps}
    elif "teacher_forcing_steps" in own:
        own["teacher_forcing_steps"] = args.teacher_forcing_steps
    settings = LatentSFTConfig(
        **cpu_settings(args),
        **own,
        step_separator="",
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=max(1, steps // 20),
        logging_steps=max(1, steps // 20),
    )
    clock = TrainingClock()
    trainer = LatentSFTTrainer(
        model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[LogFileCallback(), clock],
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    return clock.seconds


def train_part(args: TracesArguments, part: str, arm: str, rows: list[dict], tokenizer) -> None:
    """Train the start or an arm, unless that is done."""
    if (args.folder(part) / ADAPTER).exists():
        return
    own, first = replace(args, output_dir=str(args.folder(part))), part == START
    with training_run(own.output_dir, overwrite=True, traces=args) as run:
        set_seed(args.seed)
        if first:
            lora = LoraConfig(r=args.lora_r, lora_alpha=2 * args.lora_r, target_modules=LINEAR)
            schedule = {"steps": args.start_steps, "rate": args.start_learning_rate}
            seconds = train(own, arm, rows, args.load_model(), tokenizer, peft_config=lora, **schedule)
        else:
            schedule = {"steps": args.arm_steps, "rate": args.learning_rate}
            seconds = train(own, arm, rows, args.load_start(), tokenizer, **schedule)
        run.record.add(metrics={"train_seconds": seconds})


def evaluate_part(args: TracesArguments, part: str, problems: list[dict], tokenizer) -> None:
    """Write the scores of the start or an arm on the problems of `evaluate_on`, unless that is done."""
    path = args.scores(part)
    if path.exists():
        return
    model = load_thinking_model(str(args.folder(part)), **args.loading())
    scores = evaluate_thinking(model, tokenizer, problems, THOUGHT_TASKS["sets"].reward, args.eval_batch_size)
    write_rows(path, [dict(zip(scores, values)) for values in zip(*scores.values())])
    print(part, {name: sum(values) / len(values) for name, values in scores.items()}, flush=True)


def draw_traces(args: TracesArguments, problems: list[dict], tokenizer) -> list[dict]:
    """The problems with the start's traces, drawn unless that is done."""
    path = args.folder(TRACES)
    if not path.exists():
        reward = THOUGHT_TASKS["sets"].reward
        write_rows(path, sample_traces(args.load_start(), tokenizer, problems, args.samples, args.seed, reward))
    return problems_with_targets(problems, read_json_lines(path))


def write_report(args: TracesArguments, facts: dict) -> dict:
    """Write the report of all parts; returns the content of `report.json`."""
    scores = {part: read_json_lines(args.scores(part)) for part in (args.arms[0], START, *args.arms[1:])}
    content = {"split": args.evaluate_on, "traces": facts, **problem_report(scores, args.arms[0], args.seed)}
    atomic_write_json(args.folder("report.json"), content)
    atomic_write_text(args.folder("report.md"), problem_report_markdown(content))
    return content


def main(argv: Sequence[str] | None = None) -> dict:
    (args,) = RecipeParser(TracesArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(args.model_name_or_path, padding_side="left")
    seen = args.start_steps * args.batch_size
    problems, held_out = args.problems(seen + args.traced_problems)
    hasty = make_hasty(problems[:seen], share=1.0, seed=args.seed)
    train_part(args, START, DISCRETE, training_rows(hasty, LATENT_ARMS[DISCRETE], args.seed, set_runs), tokenizer)
    evaluate_part(args, START, held_out, tokenizer)
    traced = draw_traces(args, problems[seen:], tokenizer)
    for arm in args.arms:
        train_part(args, arm, arm, training_rows(traced, LATENT_ARMS[arm], args.seed, set_runs), tokenizer)
        evaluate_part(args, arm, held_out, tokenizer)
    content = write_report(args, trace_facts(problems[seen:], traced, read_json_lines(args.folder(TRACES))))
    print(f"The report is in {args.folder('report.md')}")
    return content


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
