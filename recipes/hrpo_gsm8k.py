"""
Train hybrid latent reasoning (HRPO) on GSM8K, from a plain or thinking Qwen2, Llama or Qwen3 checkpoint.

```bash
accelerate launch recipes/hrpo_gsm8k.py --config recipes/configs/hrpo_gsm8k/paper.yaml
```

`paper.yaml` holds the published settings (a 1.5B model on one 80 GB GPU, hours); `smoke.yaml` runs in minutes on two
CPU cores, from a local checkpoint:

```bash
python recipes/train_from_scratch.py --config recipes/configs/train_from_scratch/smoke.yaml
accelerate launch recipes/hrpo_gsm8k.py --config recipes/configs/hrpo_gsm8k/smoke.yaml
```

Command-line options override the file. `--only_grpo true` is the control: the same trainer without thinking, which is
GRPO. `--task` takes the other published tasks. An interrupted run goes on with `--resume_from_checkpoint true`; jobs
that are requeued pass `--resume_from_checkpoint auto` from the start.

Outputs, in `output_dir`: the model with tokenizer and model card, `checkpoint-*`, `run.json` (the run record),
`curves.png`.
"""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from transformers import set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_evidenceflow import HRPOConfig, HRPOTrainer
from hf_evidenceflow.callbacks.rollout_digest import RolloutDigest
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.report.curves import plot_training_curves
from hf_evidenceflow.report.samples import print_samples
from hf_evidenceflow.report.say import say
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import TASKS
from hf_evidenceflow.tasks.prompts import chat_form, system_prompt_argument


@dataclass
class ScriptArguments:
    """
    Data and thinking residual.

    Args:
        task (`str`, *optional*, defaults to `"gsm8k"`):
            One of [`~hf_evidenceflow.tasks.TASKS`]: `gsm8k`, `math`, `mmlu_stem`, `arc_challenge`,
            `open_qa`, or `rows` of one's own with `prompt` or `question`, and `answer`.
        dataset_name_or_path (`str`, *optional*):
            Hub name, jsonl or parquet file, or folder. If not given, the task's data set on the Hub, which `open_qa`
            and `rows` have not.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        system_prompt (`str`, *optional*):
            Instruction before a question; `none`: the question alone. If not given, the task's own.
        conversational (`bool`, *optional*):
            Whether a question becomes a chat message. If not given, where the tokenizer has a chat template.
        max_samples (`int`, *optional*):
            Number of problems, drawn with `seed`. If not given, all.
        only_grpo (`bool`, *optional*, defaults to `False`):
            The control: no thinking, that is GRPO.
        thinking_mode, thinking_residual_r_min, thinking_residual_r_max, thinking_residual_c,
        thinking_projection_layers, thinking_projection_norm, thinking_projection_dropout,
        thinking_projection_init_std, thinking_answer_start, thinking_count, thinking_token_policy,
        thinking_placeholder_id, thinking_source, thinking_mixer, thinking_schedule, thinking_noise, thinking_top_k,
        thinking_temperature, thinking_sigma, thinking_noise_dropout, thinking_fusion, thinking_min_latent,
        thinking_min_text, thinking_max_blocks, thinking_threshold, thinking_start_id, thinking_end_id (*optional*):
            Fields of the model's config. What is not given stays as in the checkpoint, such as one of
            `recipes/latent_sft.py`. `thinking_answer_start=none` thinks over the whole completion.
        plot (`bool`, *optional*, defaults to `True`):
            Whether to draw `curves.png` at the end.
        shown_samples (`int`, *optional*, defaults to `4`):
            Completions of the last rollout shown at the end.
    """

    task: str = field(default="gsm8k", metadata={"choices": list(TASKS)})
    dataset_name_or_path: str | None = None
    dataset_split: str = "train"
    system_prompt: str | None = None
    conversational: bool | None = None
    max_samples: int | None = None
    only_grpo: bool = False
    thinking_mode: str | None = None
    thinking_residual_r_min: float | None = None
    thinking_residual_r_max: float | None = None
    thinking_residual_c: float | None = None
    thinking_projection_layers: int | None = None
    thinking_projection_norm: str | None = None
    thinking_projection_dropout: float | None = None
    thinking_projection_init_std: float | None = None
    thinking_answer_start: str | None = None
    thinking_count: int | None = None
    thinking_token_policy: str | None = None
    thinking_placeholder_id: int | None = None
    thinking_source: str | None = None
    thinking_mixer: str | None = None
    thinking_schedule: str | None = None
    thinking_noise: str | None = None
    thinking_top_k: int | None = None
    thinking_temperature: float | None = None
    thinking_sigma: float | None = None
    thinking_noise_dropout: float | None = None
    thinking_fusion: float | None = None
    thinking_min_latent: int | None = None
    thinking_min_text: int | None = None
    thinking_max_blocks: int | None = None
    thinking_threshold: float | None = None
    thinking_start_id: int | None = None
    thinking_end_id: int | None = None
    plot: bool = True
    shown_samples: int = 4

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {self.task!r}.")
        if self.dataset is None:
            raise ValueError(f"`task={self.task}` has no data set of its own. Give `dataset_name_or_path`.")

    @property
    def dataset(self) -> str | None:
        """The data set that was given, or else that of the task."""
        return self.dataset_name_or_path or TASKS[self.task].dataset

    def thinking_fields(self) -> dict:
        """Fields of the model's config that were given."""
        given = {
            name: value for name, value in vars(self).items() if name.startswith("thinking_") and value is not None
        }
        if given.get("thinking_answer_start", "").lower() == "none":
            given["thinking_answer_start"] = None
        return given | ({"thinking_mode": "none"} if self.only_grpo else {})


@dataclass
class HRPOModelConfig(ModelConfig):
    """[`~trl.ModelConfig`] with the paper's LoRA settings (they take effect with `use_peft`); names a model."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint to start from, plain or thinking: name or folder."})
    lora_r: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


def main(argv: list[str] | None = None) -> HRPOTrainer:
    parser = RecipeParser((ScriptArguments, HRPOConfig, HRPOModelConfig), __doc__)
    script_args, training_args, model_args = parser.parse_args_and_config(argv)
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
        task = TASKS[script_args.task]
        say(f"Loading {script_args.dataset} ...")
        tokenizer = load_tokenizer(
            model_args.model_name_or_path, revision=model_args.model_revision, padding_side="left"
        )
        dataset = task.load(
            script_args.dataset,
            split=script_args.dataset_split,
            conversational=chat_form(tokenizer, script_args.conversational),
            max_samples=script_args.max_samples,
            seed=training_args.seed,
            **system_prompt_argument(script_args.system_prompt),
        )
        say(f"{len(dataset)} problems. Loading {model_args.model_name_or_path} ...")
        training_args.model_init_kwargs = {
            "revision": model_args.model_revision,
            "dtype": model_args.dtype,
            "attn_implementation": model_args.attn_implementation,
            **script_args.thinking_fields(),
        }
        trainer = HRPOTrainer(
            model_args.model_name_or_path,
            task.reward,
            args=training_args,
            train_dataset=dataset,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
        trainer.model_card_dataset = script_args.dataset
        digest = RolloutDigest(trainer)
        trainer.add_callback(digest)

        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model()
        trainer.save_state()
        run.record.add(metrics=trainer.state.log_history[-1], costs=digest.costs(trainer.state.global_step))
        if trainer.is_world_process_zero():
            report(trainer, dataset, script_args)
        trainer.create_model_card()  # with the curves
        if training_args.push_to_hub:
            trainer.push_to_hub()
    return trainer


def report(trainer, dataset, script_args) -> None:
    """Samples of the last rollout in the terminal, curves as a picture."""
    output_dir = Path(trainer.args.output_dir)
    samples = trainer.last_samples
    count = min(script_args.shown_samples, len(samples["prompts"]))
    if count:
        answers = {str(row["prompt"]): row["answer"] for row in dataset}
        print_samples(
            samples["prompts"][:count],
            samples["completions"][:count],
            golds=[answers.get(str(prompt)) for prompt in samples["prompts"][:count]],
            rewards=[sum(values) for values in zip(*samples["rewards"].values())][:count],
            title=f"Last rollout, step {trainer.state.global_step}",
        )
    if script_args.plot:
        label = "GRPO" if script_args.only_grpo else "HRPO"
        plot_training_curves({label: trainer.state.log_history}, output_dir / "curves.png")
        print(f"Curves: {output_dir / 'curves.png'}")


if __name__ == "__main__":
    run_recipe(main)
