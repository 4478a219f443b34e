"""
One arm of `recipes/compare.py` with one seed: warm start, RL, and the evaluations with and without thinking.

```bash
python recipes/compare_arm.py --output_dir outputs/arm --task sums --thinking_mode embedding --rl_steps 20
```

About 2 minutes on one CPU core at the sizes of `recipes/configs/compare/sums.yaml`, offline. The warm start is made
once a seed, in `warm_up_dir`, and shared by the arms. All arms train with [`HRPOTrainer`]; with `thinking_mode="none"`
it is GRPO, so that all have the same prompts, reward, decoding loop and budget. A run that was cut off begins anew.

Outputs, in `output_dir`: `log.jsonl` (training and periodic evaluations), `eval_samples.jsonl` (score of each test
problem), `run.json`, and the model.
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from datasets import Dataset
from filelock import FileLock
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, ThinkingIntervention, load_thinking_model
from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.callbacks.log_file import LOG_FILE_NAME, LogFileCallback
from hf_evidenceflow.callbacks.training_clock import TrainingClock
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.recipes.experiments.sampled_scores import pass_means
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import GENERATED_TASKS, grade, gsm8k_reward, prepare_gsm8k


WARM_UP_DONE = "warm_up.json"


@dataclass
class ArmArguments:
    """
    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/arm"`):
            Folder of the arm and seed.
        warm_up_dir (`str`, *optional*, defaults to `"outputs/warm-up"`):
            Folder of the warm starts, one per seed.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the problems, the weights and the sampling.
        task (`str`, *optional*, defaults to `"sums"`):
            `"sums"` ([`generate_word_problems`]) or `"graph"` ([`generate_graph_problems`]).
        task_settings (`dict`, *optional*):
            Arguments of the task's generator, such as `steps` or `depth`; in a YAML file only.
        train_problems, test_problems (`int`, *optional*, default to `4000` and `200`):
            Problems of each split.
        max_new_tokens (`int`, *optional*, defaults to `28`):
            Budget of a completion, in training and evaluation.
        hidden_size, num_layers (`int`, *optional*, default to `64` and `2`):
            Sizes of the Qwen2.
        warm_up_steps (`int`, *optional*, defaults to `500`):
            Steps of the warm start, with 64 solutions each.
        warm_up_learning_rate (`float`, *optional*, defaults to `5e-3`):
            Learning rate of the warm start.
        wrong_share (`float`, *optional*, defaults to `0.6`):
            Share of its solutions that are wrong or careless.
        short_share (`float`, *optional*, defaults to `0`):
            Share of its solutions without the steps but the last.
        rl_steps (`int`, *optional*, defaults to `60`):
            Optimizer steps of reinforcement learning; `0` is the base.
        samples_per_step (`int`, *optional*, defaults to `64`):
            Completions a step, in groups of 8.
        learning_rate (`float`, *optional*, defaults to `2e-4`):
            Rate of all weights but the thinking modules.
        thinking_learning_rate (`float`, *optional*, defaults to `1e-3`):
            Rate of the thinking modules.
        thinking_mode (`str`, *optional*, defaults to `"none"`):
            Mode that the arm is trained in; `"none"` is GRPO.
        thinking_settings (`dict`, *optional*):
            Fields of the thinking config, such as `thinking_residual_r_min`; in a YAML file only.
        weights_of (`str`, *optional*):
            Arm whose trained weights take the place of the warm start, for a way of thinking that needs no training:
            it comes before in the grid, and the folder of the same seed is next to this one.
        eval_steps (`int`, *optional*, defaults to `10`):
            Optimizer steps between two evaluations in training.
        samples (`int`, *optional*, defaults to `4`):
            Sampled completions of each test problem in the last evaluation.
    """

    output_dir: str = "outputs/arm"
    warm_up_dir: str = "outputs/warm-up"
    seed: int = 0
    task: str = "sums"
    task_settings: dict = field(default_factory=dict)
    train_problems: int = 4000
    test_problems: int = 200
    max_new_tokens: int = 28
    hidden_size: int = 64
    num_layers: int = 2
    warm_up_steps: int = 500
    warm_up_learning_rate: float = 5e-3
    wrong_share: float = 0.6
    short_share: float = 0.0
    rl_steps: int = 60
    samples_per_step: int = 64
    learning_rate: float = 2e-4
    thinking_learning_rate: float = 1e-3
    thinking_mode: str = "none"
    thinking_settings: dict = field(default_factory=dict)
    weights_of: str | None = None
    eval_steps: int = 10
    samples: int = 4

    def __post_init__(self):
        if self.task not in GENERATED_TASKS:
            raise ValueError(f"`task` must be one of {', '.join(GENERATED_TASKS)}, got {self.task!r}.")
        check_least(self, rl_steps=0, eval_steps=1, samples=1, max_new_tokens=1, warm_up_steps=1)
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"`short_share` must be in [0, 1], got {self.short_share}.")
        if self.samples_per_step % 8:
            raise ValueError(f"`samples_per_step` must be a multiple of 8, got {self.samples_per_step}.")


class PeriodicEvaluation(TrainerCallback):
    """Accuracy of one sample a problem, in the mode of the training, with the seconds and tokens trained so far."""

    def __init__(self, args: ArmArguments, tokenizer, test, clock: TrainingClock):
        self.args, self.tokenizer, self.test, self.clock = args, tokenizer, test, clock

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.args.eval_steps and state.global_step != state.max_steps:
            return
        with self.clock.paused():
            scores, _ = score(model, self.tokenizer, self.test, self.args, samples=1)
        row = {
            "eval_accuracy": sum(map(sum, scores)) / len(scores),
            "train_seconds": self.clock.seconds,
            "train_tokens": state.num_input_tokens_seen,
            "step": state.global_step,
        }
        with open(Path(args.output_dir) / LOG_FILE_NAME, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def common_settings(args: ArmArguments, output_dir) -> dict:
    return {
        "output_dir": str(output_dir),
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


def shorten(solution: str) -> str:
    """A solution without the steps but the last, as of someone who does the rest in the head."""
    return "\n".join(solution.split("\n")[-2:])


def warm_up(args: ArmArguments, problems: list[dict], tokenizer) -> str:
    """A tiny Qwen2 trained from scratch on careless solutions; the first arm of a seed makes it, the others wait."""
    folder = Path(args.warm_up_dir) / f"seed-{args.seed}"
    settings = json.dumps({name: getattr(args, name) for name in _WARM_UP_FIELDS}, sort_keys=True)
    Path(args.warm_up_dir).mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        done = folder / WARM_UP_DONE
        if not done.exists():
            train_warm_up(args, problems, tokenizer, folder)
            atomic_write_text(done, settings)
    if done.read_text(encoding="utf-8") != settings:
        raise ValueError(
            f"The warm start in `{folder}` was made with other settings. Choose another `warm_up_dir`, or remove it."
        )
    return str(folder)


_WARM_UP_FIELDS = (
    "task",
    "task_settings",
    "train_problems",
    "test_problems",
    "hidden_size",
    "num_layers",
    "warm_up_steps",
    "warm_up_learning_rate",
    "wrong_share",
    "short_share",
)


def train_warm_up(args: ArmArguments, problems: list[dict], tokenizer, folder: Path) -> None:
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
    model = model_from_scratch("qwen2", sizes, tokenizer)
    rows = GENERATED_TASKS[args.task].spoil(problems, args.wrong_share, seed=args.seed)
    short = torch.rand(len(rows), generator=torch.Generator().manual_seed(args.seed)) < args.short_share
    solutions = [shorten(row["answer"]) if cut else row["answer"] for row, cut in zip(rows, short.tolist())]
    dataset = Dataset.from_list(
        [
            {"prompt": row["question"] + "\n", "completion": solution + tokenizer.eos_token}
            for row, solution in zip(rows, solutions)
        ]
    )
    settings = SFTConfig(
        **common_settings(args, folder),
        max_steps=args.warm_up_steps,
        per_device_train_batch_size=64,
        learning_rate=args.warm_up_learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        max_length=256,
        logging_steps=100,
    )
    trainer = SFTTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


def trained(args: ArmArguments) -> str:
    """Folder of the weights of another arm."""
    folder = Path(args.output_dir).parent / f"arm={args.weights_of},seed={args.seed}"
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"`weights_of={args.weights_of}`: there is no trained model in `{folder}`. Run that arm first, such as "
            "with `--jobs 1`; the same command again goes on."
        )
    return str(folder)


def reinforce(args: ArmArguments, model, train, test, tokenizer) -> dict:
    """Trains the arm; returns its seconds and tokens."""
    set_seed(args.seed)
    modules = ("residual_gate", "residual_Lambda", "projection", "head")
    settings = HRPOConfig(
        **common_settings(args, args.output_dir),
        max_steps=args.rl_steps,
        per_device_train_batch_size=args.samples_per_step,
        num_generations=8,
        max_completion_length=args.max_new_tokens,
        temperature=1.0,
        beta=0.0,
        learning_rate=args.learning_rate,
        warmup_steps=min(10, args.rl_steps // 4),
        lr_scheduler_type="constant_with_warmup",
        logging_steps=1,
        **{f"lr_thinking_{module}": args.thinking_learning_rate for module in modules},
    )
    clock = TrainingClock()
    trainer = HRPOTrainer(
        model,
        gsm8k_reward,
        args=settings,
        train_dataset=train,
        processing_class=tokenizer,
        callbacks=[LogFileCallback(), clock, PeriodicEvaluation(args, tokenizer, test, clock)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    last = next(row for row in reversed(trainer.state.log_history) if "reward" in row)
    metrics = {"train_seconds": clock.seconds, "train_tokens": trainer.state.num_input_tokens_seen}
    ratio = last.get("thinking/hidden_ratio")
    return metrics if ratio is None else metrics | {"hidden_ratio": ratio}


def score(model, tokenizer, dataset, args: ArmArguments, samples: int) -> tuple[list[list[float]], float]:
    """
    Scores of each problem, one a completion, and the mean length; `samples=0` is one greedy completion.
    """
    sampling = {"do_sample": True, "num_samples": samples} if samples else {}
    scores, tokens = [[] for _ in range(len(dataset))], 0
    golds = dataset["answer"][:]
    batches = generate_completions(
        model,
        tokenizer,
        dataset["prompt"][:],
        max_new_tokens=args.max_new_tokens,
        batch_size=400,
        seed=args.seed,
        **sampling,
    )
    for batch in batches:
        for item in batch:
            scores[item.index].append(float(grade(item.text, golds[item.index])))
            tokens += item.completion_tokens
    return scores, tokens / sum(map(len, scores))


def evaluate(model, tokenizer, test, args: ArmArguments) -> tuple[dict, list[dict]]:
    """
    Greedy and sampled accuracy and pass@k in the arm's mode (no suffix), with thinking off, with states of other
    problems (greedy), and with soft thinking.
    """
    metrics, rows = {}, [{"id": index} for index in range(len(test))]
    for suffix, (mode, kind) in evaluations(model.config).items():
        model.config.thinking_mode = mode
        for name, samples in (("greedy", 0), ("accuracy", args.samples)):
            if kind == "swap" and samples:
                continue
            with nullcontext() if kind is None else ThinkingIntervention(kind):
                scores, length = score(model, tokenizer, test, args, samples)
            means = [sum(values) / len(values) for values in scores]
            # With no thinking in training the two are the same evaluation
            for key in ("", "_off") if mode == "none" else (suffix,):
                metrics[f"eval_{name}{key}"] = sum(means) / len(means)
                metrics[f"eval_length{key}"] = length
                if samples > 1:
                    metrics[f"eval_pass{samples}{key}"] = pass_means(scores, [samples])[f"pass{samples}"]
                for row, value in zip(rows, means):
                    row[name + key] = value
    return metrics, rows


def evaluations(config) -> dict[str, tuple[str, str | None]]:
    """Mode and intervention of each evaluation by the suffix of its metrics, the arm's own last."""
    mode, fuses = config.thinking_mode, config.thinking_method.fuses
    if mode == "none":
        return {"_soft": ("soft", None), "": ("none", None)}
    found = {"_soft": ("soft", None), "_off": (mode, "off"), "_swap": (mode, "swap"), "": (mode, None)}
    return found if fuses else {suffix: each for suffix, each in found.items() if suffix != "_swap"}


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(ArmArguments, __doc__).parse_args_and_config(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    start = time.perf_counter()
    with training_run(args.output_dir, overwrite=True, arm=args) as run:
        task = GENERATED_TASKS[args.task]
        names = args.task_settings.get("names") if args.task == "graph" else None
        tokenizer = task.build_tokenizer() if names is None else task.build_tokenizer(names)
        splits = task.split(train=args.train_problems, test=args.test_problems, seed=args.seed, **args.task_settings)
        checkpoint = trained(args) if args.weights_of else warm_up(args, splits["train"], tokenizer)
        train, test = (
            prepare_gsm8k(Dataset.from_list(rows), conversational=False, system_prompt=None)
            for rows in splits.values()
        )
        set_seed(args.seed)
        model = load_thinking_model(checkpoint, thinking_mode=args.thinking_mode, **args.thinking_settings)
        metrics = {} if args.rl_steps == 0 else reinforce(args, model, train, test, tokenizer)
        results, rows = evaluate(model, tokenizer, test, args)
        metrics |= results
        atomic_write_text(
            Path(args.output_dir) / "eval_samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        )
        run.record.add(metrics=metrics)
    print(json.dumps(metrics), f"{time.perf_counter() - start:.0f} seconds")
    return metrics


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
