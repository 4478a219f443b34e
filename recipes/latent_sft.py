"""
Train a model to think in states: latent supervised training, from rows with solutions or on a generated task.

```bash
python recipes/latent_sft.py --config recipes/configs/latent_sft/smoke.yaml
accelerate launch recipes/latent_sft.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name_or_path rows.jsonl \
    --thinking_mode soft --teacher_forcing_steps 0.5 --output_dir outputs/latent
```

A row has `prompt` or `question`, `answer`, and `traces` (several solutions), `thought_targets` (for each thought a
dictionary of texts and weights), `steps` (one solution), or an `answer` that is a whole solution, as in GSM8K. The
published recipes of Coconut and CODI are `recipes/configs/latent_sft/coconut/paper.yaml` and `codi/paper.yaml`, and
`recipes/sample_traces.py` lets a model write the traces itself. With `--task` the problems are generated; they are
written to the output folder, and without `--model_name_or_path` a small model is made for them. `smoke.yaml` takes
seconds on a CPU, offline.

The checkpoint thinks wherever it is loaded: `recipes/audit_thinking.py` measures what its states are good for, and
`recipes/hrpo_gsm8k.py --task rows` goes on with reinforcement learning. An interrupted run goes on with
`--resume_from_checkpoint true`; jobs that are requeued pass `--resume_from_checkpoint auto` from the start.

Outputs, in `output_dir`: the model with tokenizer and model card, `checkpoint-*`, `run.json` (the run record),
`log.jsonl`, `curves.png`, and with `--task` `problems.jsonl` and `test.jsonl`.
"""

import importlib.util
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from transformers import set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer
from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.data.thought_rows import SPLITS, load_thought_rows, step_splitter
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.models.from_scratch import model_from_scratch, parse_overrides
from hf_evidenceflow.report.curves import plot_training_curves
from hf_evidenceflow.report.samples import print_samples
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import THOUGHT_TASKS
from hf_evidenceflow.tasks.prompts import chat_form, system_prompt_argument


@dataclass
class ScriptArguments:
    """
    Data, and the model that is made where none is given.

    Args:
        dataset_name_or_path (`str`, *optional*):
            Hub name, jsonl, json or parquet file, or folder; else `task`.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        eval_split (`str`, *optional*):
            Split that `eval_strategy` evaluates on; with `task` those are the test problems.
        steps_column (`str`, *optional*, defaults to `"steps"`):
            Column of the one solution.
        step_split (`str`, *optional*, defaults to `"lines"`):
            How a solution that is one text becomes steps: `lines`, without GSM8K's annotations `<<...>>`; `equations`,
            those annotations alone; or `tokens`, one step each.
        system_prompt (`str`, *optional*):
            Instruction before a `question`; `none`: the question alone. If not given, one that asks for the answer
            after `####`, as in `hrpo_gsm8k.py --task rows`. Where a row has a `prompt`, that is all.
        conversational (`bool`, *optional*):
            Whether a `question` becomes a chat message. If not given, where the tokenizer has a chat template.
        max_samples (`int`, *optional*):
            Number of rows of the data set, drawn with `seed`. If not given, all.
        task (`str`, *optional*):
            Generated problems instead of a data set: `sets` ([`generate_set_problems`]) or `stories`
            ([`generate_graph_stories`]).
        task_settings (`dict`, *optional*):
            Arguments of their generator; on the command line as JSON, such as `{"moves": 6}`.
        train_problems, test_problems (`int`, *optional*, default to `20000` and `500`):
            Number of generated problems of each kind.
        model_type (`str`, *optional*, defaults to `"qwen2"`):
            Family of the model that is made for a task without `model_name_or_path`: `qwen2`, `llama` or `qwen3`.
        config_overrides (`dict`, *optional*):
            Fields of its config; on the command line as JSON.
        plot (`bool`, *optional*, defaults to `True`):
            Whether to draw `curves.png` at the end.
        shown_samples (`int`, *optional*, defaults to `4`):
            Completions shown at the end.
    """

    dataset_name_or_path: str | None = None
    dataset_split: str = "train"
    eval_split: str | None = None
    steps_column: str = "steps"
    step_split: str = field(default="lines", metadata={"choices": list(SPLITS)})
    system_prompt: str | None = None
    conversational: bool | None = None
    max_samples: int | None = None
    task: str | None = field(default=None, metadata={"choices": list(THOUGHT_TASKS)})
    task_settings: dict | str | None = None
    train_problems: int = 20_000
    test_problems: int = 500
    model_type: str = "qwen2"
    config_overrides: dict | str | None = None
    plot: bool = True
    shown_samples: int = 4

    def __post_init__(self):
        if (self.dataset_name_or_path is None) == (self.task is None):
            raise ValueError(
                "Give exactly one of `dataset_name_or_path` (rows with solutions) and `task` (generated problems: "
                f"{', '.join(THOUGHT_TASKS)}), got {self.dataset_name_or_path!r} and {self.task!r}."
            )
        if self.model_type not in ("qwen2", "llama", "qwen3"):
            raise ValueError(f"`model_type` must be 'qwen2', 'llama' or 'qwen3', got {self.model_type!r}.")
        self.task_settings = parse_overrides(self.task_settings, "task_settings", '{"moves": 6}')
        self.config_overrides = parse_overrides(self.config_overrides)


@dataclass
class LatentModelConfig(ModelConfig):
    """[`~trl.ModelConfig`] with LoRA on all linear layers (it takes effect with `use_peft`)."""

    lora_r: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def main(argv: list[str] | None = None) -> LatentSFTTrainer:
    parser = RecipeParser((ScriptArguments, LatentSFTConfig, LatentModelConfig), __doc__)
    script_args, training_args, model_args = parser.parse_args_and_config(argv)
    if script_args.dataset_name_or_path is not None and model_args.model_name_or_path is None:
        raise ValueError("`dataset_name_or_path` needs `model_name_or_path`: the checkpoint to start from.")
    if script_args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "`curves.png` needs matplotlib: `pip install hf-evidenceflow[plots]`, or pass `--plot false`."
        )
    set_seed(training_args.seed)

    with training_run(
        training_args.output_dir,
        training_args.resume_from_checkpoint,
        script=script_args,
        training=training_args,
        model=model_args,
    ) as run:
        tokenizer = make_tokenizer(script_args, model_args)
        train, test = load_data(script_args, training_args, tokenizer)
        trainer = LatentSFTTrainer(
            make_model(script_args, training_args, model_args, tokenizer),
            args=training_args,
            train_dataset=train,
            eval_dataset=test if training_args.eval_strategy != "no" else None,
            processing_class=tokenizer,
            callbacks=[LogFileCallback()],
            peft_config=get_peft_config(model_args),
        )
        trainer.model_card_dataset = script_args.dataset_name_or_path or script_args.task

        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model()
        trainer.save_state()
        run.record.add(metrics=trainer.state.log_history[-1])
        if trainer.is_world_process_zero():
            report(trainer, test or train, script_args)
        trainer.create_model_card()  # with the curves
        if training_args.push_to_hub:
            trainer.push_to_hub()
    return trainer


def make_tokenizer(args: ScriptArguments, model_args: LatentModelConfig):
    """That of the checkpoint, or the task's own."""
    if model_args.model_name_or_path is not None:
        return load_tokenizer(model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left")
    build = THOUGHT_TASKS[args.task].build_tokenizer
    known = inspect.signature(build).parameters
    return build(**{name: value for name, value in args.task_settings.items() if name in known})


def load_data(args: ScriptArguments, training_args: LatentSFTConfig, tokenizer) -> tuple[list[dict], list[dict]]:
    """Rows to train on and to evaluate on; those of a task are written to the output folder."""
    if args.task is None:
        splits = [(args.dataset_split, args.max_samples), (args.eval_split, None)]
        train, test = (
            []
            if split is None
            else load_thought_rows(
                args.dataset_name_or_path,
                split=split,
                conversational=chat_form(tokenizer, args.conversational),
                max_samples=max_samples,
                seed=training_args.seed,
                **system_prompt_argument(args.system_prompt),
                steps_column=args.steps_column,
                split_steps=step_splitter(args.step_split, tokenizer),
            )
            for split, max_samples in splits
        )
        return train, test
    problems = THOUGHT_TASKS[args.task].split(
        train=args.train_problems, test=args.test_problems, seed=training_args.seed, **args.task_settings
    )
    for part, name in (("train", "problems.jsonl"), ("test", "test.jsonl")):
        lines = (json.dumps(row) + "\n" for row in problems[part])
        atomic_write_text(Path(training_args.output_dir) / name, "".join(lines))
    return problems["train"], problems["test"]


def make_model(args: ScriptArguments, training_args: LatentSFTConfig, model_args: LatentModelConfig, tokenizer):
    """The name of the checkpoint, which the trainer loads, or a model with random weights."""
    if model_args.model_name_or_path is None:
        settings, training_args.thinking_settings = training_args.thinking_settings, None
        fields = {**args.config_overrides, **(settings or {})}
        return model_from_scratch(f"thinking_{args.model_type}", fields, tokenizer)
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        training_args.model_init_kwargs["quantization_config"] = quantization
    return model_args.model_name_or_path


def report(trainer: LatentSFTTrainer, rows: Sequence[dict], args: ScriptArguments) -> None:
    """Greedy completions in the terminal, curves as a picture."""
    shown = rows[: args.shown_samples]
    if shown:
        longest = max(
            max(len(row["target_ids"]), sum(map(len, row["step_ids"]))) + len(row["answer_ids"])
            for row in trainer.train_dataset
        )
        batches = generate_completions(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            [row["prompt"] for row in shown],
            max_new_tokens=longest + (trainer.thinking_count or 0),
        )
        found = sorted((item for batch in batches for item in batch), key=lambda item: item.index)
        print_samples(
            [item.prompt for item in found],
            [item.text for item in found],
            golds=[row["answer"] for row in shown],
            title=f"Greedy completions, step {trainer.state.global_step}",
        )
    if args.plot:
        path = Path(trainer.args.output_dir) / "curves.png"
        plot_training_curves({trainer.thinking_mode: trainer.state.log_history}, path)
        print(f"Curves: {path}")


if __name__ == "__main__":
    run_recipe(main)
