"""
Train any causal LM on text: a new one from a model type and config fields, or a checkpoint; packing, validation
perplexity, layer-wise supervision (EvidenceFlow), resume.

```bash
python recipes/pretrain_clm.py --config recipes/configs/pretrain_clm/smoke.yaml
```

`smoke.yaml` takes a minute on two CPU cores, offline, on generated text; `paper.yaml` holds the published settings.
Command-line options override the file. On your own text:

```bash
python recipes/pretrain_clm.py --train_file train.txt --validation_file validation.txt --train_vocab_size 2048 \
    --model_type llama --config_overrides '{"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}' \
    --block_size 64 --max_steps 500 --learning_rate 3e-3 --evidence_objective mse --output_dir outputs/llama
```

`--task sft` trains on conversations or prompt-completion rows with TRL's SFTTrainer, the loss on completions only. An
interrupted run goes on with `--resume_from_checkpoint true`.

Outputs, in `output_dir`: the model with its tokenizer, `checkpoint-*`, `run.json` (the run record with the final
metrics), `log.jsonl`, `trainer_state.json`, `curves.png`.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from torch.utils.data import Subset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import TrlParser

import hf_evidenceflow
from hf_evidenceflow.data.packing import PACKINGS, pack_rows
from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents, load_documents, split_documents
from hf_evidenceflow.data.token_cache import cached_text_tokenizer, encode_documents
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.reporting import run_record
from hf_evidenceflow.trainers.checkpoints import last_whole_checkpoint, resolve_output_dir
from hf_evidenceflow.trainers.pretraining_config import PretrainingConfig
from hf_evidenceflow.trainers.pretraining_trainer import PretrainingTrainer


@dataclass
class ScriptArguments:
    """
    Model and data.

    Args:
        model_name_or_path (`str`, *optional*):
            Checkpoint to start from; else `model_type`.
        model_type (`str`, *optional*):
            Type of a model with random weights, such as `llama`, `gpt2` or `opt`.
        config_overrides (`dict`, *optional*):
            With `model_type`: fields of its config; on the command line as JSON.
        attn_implementation, dtype (`str`, *optional*):
            As in `from_pretrained`.
        dataset_name_or_path (`str`, *optional*):
            Hub name, text or data file, or folder. Without it and `train_file` the text is generated.
        dataset_config (`str`, *optional*):
            Configuration of the data set.
        dataset_split, validation_split (`str`, *optional*):
            Splits; `train`, and none.
        train_file, validation_file (`str`, *optional*):
            Files instead of a data set.
        validation_share (`float`, *optional*):
            Share of the training data to hold out where there is no validation data.
        max_eval_samples (`int`, *optional*):
            Rows of the validation data that are used, from its start. If not given, all.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the text.
        document_separator (`str`, *optional*, defaults to `"<|endoftext|>"`):
            Ends a document in a text file; `\\n` is a line break. A file without it is one document.
        generated_documents (`int`, *optional*, defaults to `4000`):
            Number of generated documents.
        tokenizer_name_or_path (`str`, *optional*):
            Tokenizer; if not given, that of `model_name_or_path`.
        train_vocab_size (`int`, *optional*):
            Instead: trains a byte-level BPE tokenizer of that size on the training text.
        packing (`str`, *optional*, defaults to `"blocks"`):
            `blocks`, `documents` or `none`, see [`~hf_evidenceflow.data.packing.pack_rows`].
        block_size (`int`, *optional*, defaults to `512`):
            Tokens a row.
        cache_dir (`str`, *optional*):
            Keeps trained tokenizers and token ids for later runs on the same text. If not given, nothing is kept.
        task (`str`, *optional*, defaults to `"pretrain"`):
            `pretrain`, or `sft`.
        plot (`bool`, *optional*, defaults to `False`):
            Whether to draw `curves.png` at the end.
    """

    model_name_or_path: str | None = None
    model_type: str | None = None
    config_overrides: dict | str | None = None
    attn_implementation: str | None = None
    dtype: str | None = None
    dataset_name_or_path: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    validation_split: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    validation_share: float | None = None
    max_eval_samples: int | None = None
    text_column: str = "text"
    document_separator: str | None = END_OF_TEXT
    generated_documents: int = 4000
    tokenizer_name_or_path: str | None = None
    train_vocab_size: int | None = None
    packing: str = field(default="blocks", metadata={"choices": list(PACKINGS)})
    block_size: int = 512
    cache_dir: str | None = None
    task: str = field(default="pretrain", metadata={"choices": ["pretrain", "sft"]})
    plot: bool = False

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ValueError(
                "Give exactly one of `model_name_or_path` (to start from its weights) and `model_type` (random weights), "
                f"got {self.model_name_or_path!r} and {self.model_type!r}."
            )
        if isinstance(self.config_overrides, str):
            try:
                self.config_overrides = json.loads(self.config_overrides)
            except ValueError as error:
                raise ValueError(
                    f"`config_overrides` must be a JSON object, got {self.config_overrides!r}: {error}."
                ) from error
        self.config_overrides = self.config_overrides or {}
        if not isinstance(self.config_overrides, dict):
            raise ValueError(f"`config_overrides` must map fields to values, got {self.config_overrides!r}.")
        if self.config_overrides and self.model_type is None:
            raise ValueError("`config_overrides` needs `model_type`: a checkpoint brings its own config.")
        if self.tokenizer_name_or_path is not None and self.train_vocab_size is not None:
            raise ValueError("Give one of `tokenizer_name_or_path` and `train_vocab_size`, not both.")
        if self.document_separator is not None:
            self.document_separator = self.document_separator.replace("\\n", "\n")
        if self.train_file is not None and self.dataset_name_or_path is not None:
            raise ValueError("Give one of `train_file` and `dataset_name_or_path`, not both.")


@dataclass
class EvidenceArguments:
    """
    Layer-wise supervision; each field without its prefix is one of [`~hf_evidenceflow.EvidenceFlowConfig`], where it is
    described. What is not given stays at that config's default.

    Args:
        evidence_objective (`str`, *optional*):
            Objective; if not given, or `none`, there is no layer-wise supervision.
    """

    evidence_objective: str | None = None
    evidence_weight: float | None = None
    evidence_layers: str | None = None
    evidence_layer_weights: str | None = None
    evidence_target: str | None = None
    evidence_detach_target: bool | None = None
    evidence_target_mask: str | None = None
    evidence_apply_final_norm: bool | None = None
    evidence_token_fraction: float | None = None
    evidence_weight_warmup_steps: int | None = None
    evidence_weight_schedule: str | None = None
    evidence_log_every: int | None = None

    def config(self):
        """The [`~hf_evidenceflow.EvidenceFlowConfig`], or `None` if there is no layer-wise supervision."""
        given = {
            option.name.removeprefix("evidence_"): getattr(self, option.name)
            for option in fields(self)
            if getattr(self, option.name) is not None
        }
        if given.get("objective", "none").lower() == "none":
            given.pop("objective", None)
            if given:
                raise ValueError(
                    f"`evidence_{next(iter(given))}` has no effect without `evidence_objective`. Give one, or remove it."
                )
            return None
        return hf_evidenceflow.EvidenceFlowConfig(**given)


def load_texts(args: ScriptArguments, seed: int) -> tuple[list[str], list[str]]:
    """Documents for training and for validation."""
    source = args.train_file or args.dataset_name_or_path
    if source is None:
        return generate_documents(args.generated_documents, max(1, args.generated_documents // 10), seed)

    def load(name, split):
        return load_documents(name, split, args.dataset_config, args.text_column, args.document_separator)

    train = load(source, args.dataset_split)
    if args.validation_file is not None:
        return train, load(args.validation_file, args.validation_split or "validation")
    if args.validation_split is not None:
        return train, load(source, args.validation_split)
    if args.validation_share is not None:
        return split_documents(train, args.validation_share)
    raise ValueError(
        "There is no validation data: give `validation_file`, `validation_split`, or the `validation_share` of the "
        "training data to hold out."
    )


def load_tokenizer(args: ScriptArguments, train: list[str]):
    """The tokenizer asked for."""
    if args.train_vocab_size is not None:
        return cached_text_tokenizer(train, args.train_vocab_size, args.cache_dir)
    name = args.tokenizer_name_or_path or args.model_name_or_path
    if name is None:
        raise ValueError("`model_type` needs a tokenizer: give `tokenizer_name_or_path` or `train_vocab_size`.")
    return AutoTokenizer.from_pretrained(name)


def load_model(args: ScriptArguments, tokenizer):
    """The checkpoint, or a model with random weights."""
    settings = {"attn_implementation": args.attn_implementation, "dtype": args.dtype}
    settings = {name: value for name, value in settings.items() if value is not None}
    if args.model_type is not None:
        model = model_from_scratch(args.model_type, args.config_overrides, tokenizer, **settings)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, **settings)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and args.block_size > longest:
        raise ValueError(
            f"`block_size` is {args.block_size}, but the model has {longest} positions. Take a smaller one, or with "
            "`model_type` set `max_position_embeddings` in `config_overrides`."
        )
    return model


def main(argv: list[str] | None = None) -> PretrainingTrainer:
    parser = TrlParser((ScriptArguments, EvidenceArguments, PretrainingConfig))
    script_args, evidence_args, training_args = parser.parse_args_and_config(argv)
    if script_args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("`curves.png` needs matplotlib: `pip install hf-evidenceflow[plots]`, or drop `--plot`.")
    evidence_config = evidence_args.config()
    set_seed(training_args.seed)
    checkpoint = resolve_output_dir(training_args.output_dir, training_args.resume_from_checkpoint)

    with run_record(
        training_args.output_dir, script=script_args, evidence=evidence_args, training=training_args
    ) as record:
        train, validation = load_texts(script_args, training_args.seed)
        tokenizer = load_tokenizer(script_args, train)
        model = load_model(script_args, tokenizer)
        datasets = {
            name: pack_rows(
                *encode_documents(documents, tokenizer, script_args.cache_dir),
                script_args.block_size,
                script_args.packing,
                tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            for name, documents in (("train_dataset", train), ("eval_dataset", validation))
        }
        if script_args.max_eval_samples is not None:
            datasets["eval_dataset"] = Subset(
                datasets["eval_dataset"], range(min(script_args.max_eval_samples, len(datasets["eval_dataset"])))
            )
        trainer = PretrainingTrainer(model, training_args, processing_class=tokenizer, **datasets)
        if evidence_config is not None:
            hf_evidenceflow.EvidenceFlowCallback(evidence_config).add_to(trainer)
        print(
            f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, "
            f"{' + '.join(str(len(rows)) for rows in datasets.values())} rows of {script_args.block_size}"
        )

        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except KeyboardInterrupt:
            last = last_whole_checkpoint(training_args.output_dir)
            print(
                f"\nInterrupted at step {trainer.state.global_step}. The last whole checkpoint is {last}. "
                + ("Go on with the same command and `--resume_from_checkpoint true`." if last else "Start again."),
                file=sys.stderr,
            )
            raise

        metrics = final_metrics(trainer)
        trainer.save_model()
        trainer.save_state()
        record.add(metrics=metrics)
        if trainer.is_world_process_zero():
            print(
                f"Perplexity {metrics['eval_perplexity']:.3f}, accuracy {metrics['eval_accuracy']:.4f}, "
                f"{metrics['train_seconds']:.1f} s of training"
            )
            if script_args.plot:
                from hf_evidenceflow.evidence.curves import plot_training_curves

                path = Path(training_args.output_dir) / "curves.png"
                plot_training_curves(
                    {"train": trainer.state.log_history}, path, keys=("loss", "eval_loss", "eval_perplexity")
                )
                print(f"Curves: {path}")
        if training_args.push_to_hub:
            trainer.push_to_hub()
    return trainer


def final_metrics(trainer) -> dict:
    """Validation at the last step, unless it was just done, and what the training took."""
    history = trainer.state.log_history
    done = [row for row in history if "eval_loss" in row and row["step"] == trainer.state.global_step]
    evaluation = done[-1] if done else trainer.evaluate()
    losses = [row["loss"] for row in history if "loss" in row]
    return {
        **{name: evaluation[f"eval_{name.removeprefix('eval_')}"] for name in ("eval_loss", "eval_perplexity", "eval_accuracy")},
        "train_loss": losses[-1] if losses else None,
        "train_seconds": trainer.clock.seconds,
        "train_tokens": trainer.state.num_input_tokens_seen,
        "num_parameters": trainer.model.num_parameters(),
    }


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
