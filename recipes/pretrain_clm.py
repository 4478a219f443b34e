"""
Train any causal LM on text: a new one from a model type and the fields of its config, or a checkpoint.

```bash
python recipes/pretrain_clm.py --config recipes/configs/pretrain_clm/smoke.yaml
```

`smoke.yaml` takes half a minute on two CPU cores, on generated text. Options override the file. On your own text, with
layer-wise supervision:

```bash
python recipes/pretrain_clm.py --train_file train.txt --validation_file validation.txt --train_vocab_size 2048 \
    --model_type llama --config_overrides '{"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}' \
    --block_size 64 --max_steps 500 --learning_rate 3e-3 --evidence_objective mse --output_dir outputs/llama
```

`--task sft` trains on conversations (`messages`) or `prompt` and `completion` in TRL's SFTTrainer, the loss on the
answers only:
```bash
python recipes/pretrain_clm.py --model_type llama --tokenizer_name_or_path outputs/tokenizer \
    --train_tokens outputs/tokens --validation_tokens outputs/tokens-validation --output_dir outputs/llama
python recipes/pretrain_clm.py --task sft --model_name_or_path outputs/llama --block_size 64 \
    --train_file sft.jsonl --validation_share 0.1 --output_dir outputs/llama-sft
```

A checkpoint of Llama or Qwen whose layers 8 to 11 are to run twice, tuned to it (a looped Llama comes out):

```bash
python recipes/pretrain_clm.py --model_name_or_path Qwen/Qwen2.5-0.5B --num_loops 2 --loop_block 8 12 --lora_r 16 \
    --train_file train.txt --validation_file validation.txt --max_steps 200 --output_dir outputs/looped
```

An interrupted run goes on with the same command and `--resume_from_checkpoint true`; jobs that are requeued pass
`--resume_from_checkpoint auto` from the start.

Outputs, in `output_dir`: the model with its tokenizer, `checkpoint-*`, `run.json` (the run record with the final
metrics), `log.jsonl` (grows with the run), `trainer_state.json`, and `curves.png` with `--plot`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from datasets import Dataset
from torch.utils.data import Subset
from transformers import set_seed

import hf_evidenceflow
from hf_evidenceflow.callbacks.log_file import LogFileCallback
from hf_evidenceflow.callbacks.router_statistics_callback import RouterStatisticsCallback
from hf_evidenceflow.data import load_split
from hf_evidenceflow.data.packing import PACKINGS, pack_rows
from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents, load_documents, split_documents
from hf_evidenceflow.data.token_blocks import TokenBlocks
from hf_evidenceflow.data.token_cache import cached_text_tokenizer, encode_documents
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer as load_saved_tokenizer
from hf_evidenceflow.models.auto_looped import load_looped_model
from hf_evidenceflow.models.freezing import freeze_all_but
from hf_evidenceflow.models.from_scratch import check_positions, model_from_scratch, parse_overrides
from hf_evidenceflow.models.loading import load_checkpoint
from hf_evidenceflow.models.router_statistics import expert_modules
from hf_evidenceflow.recipes.command_line.evidence_arguments import EvidenceFlowArguments
from hf_evidenceflow.report.run_record import RunRecord
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.supervision.config import EvidenceFlowConfig
from hf_evidenceflow.supervision.layer_dropout import DROPOUT_CURRICULA
from hf_evidenceflow.supervision.layer_terms import supervised_layers
from hf_evidenceflow.tasks import generate_word_problems
from hf_evidenceflow.tokenization.encoding import EncodedCorpus, load_encoded
from hf_evidenceflow.trainers.document_isolation import check_document_isolation
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
        num_loops (`int`, *optional*):
            With `model_name_or_path`: load it as a looped Llama whose `loop_block` runs that often.
        loop_block (`list[int]`, *optional*):
            First layer of the block and the one behind its last. If not given, all layers.
        loop_damping (`bool`, *optional*, defaults to `False`):
            Loops in damped steps, see [`~hf_evidenceflow.LoopedLlamaConfig`].
        attn_implementation, dtype (`str`, *optional*):
            As in `from_pretrained`.
        lora_r, lora_alpha (`int`, *optional*):
            Rank and scale of LoRA adapters on all linear layers; if not given, the whole model is trained.
        layer_dropout (`float`, *optional*):
            Rate at which rows skip the last layer in training, see [`~hf_evidenceflow.LayerDropoutCallback`]. If not
            given, none does.
        layer_dropout_curriculum (`str`, *optional*, defaults to `"constant"`):
            `constant`, or `exponential` for a new model.
        trainable_modules (`list[str]`, *optional*):
            Names of the modules that are trained, such as `lm_head`; the others keep their weights. If not given, all.
        dataset_name_or_path (`str`, *optional*):
            Hub name, text or data file, or folder. Without it and `train_file` the text is generated.
        dataset_config (`str`, *optional*):
            Configuration of the data set.
        dataset_split, validation_split (`str`, *optional*):
            Splits; `train`, and none.
        train_file, validation_file (`str`, *optional*):
            Files instead of a data set.
        train_tokens, validation_tokens (`str`, *optional*):
            Instead of text: folders of `recipes/tokenize_corpus.py`, encoded with the same tokenizer. They are read
            from disk row by row, and packed as `blocks`.
        validation_share (`float`, *optional*):
            Share of the training data to hold out instead.
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
        packing (`str`, *optional*):
            `blocks`, `documents` or `none`, see [`~hf_evidenceflow.data.packing.pack_rows`]. If not given, `blocks`;
            SFT takes `none` only.
        block_size (`int`, *optional*, defaults to `512`):
            Tokens per row.
        cache_dir (`str`, *optional*):
            Keeps trained tokenizers and token ids for later runs on the same text. If not given, nothing is kept.
        task (`str`, *optional*, defaults to `"pretrain"`):
            `pretrain` or `sft`.
        plot (`bool`, *optional*, defaults to `False`):
            Whether to draw `curves.png` at the end; with `evidence_target_mask` also `target_mask.png`.
    """

    model_name_or_path: str | None = None
    model_type: str | None = None
    config_overrides: dict | str | None = None
    num_loops: int | None = None
    loop_block: list[int] | None = None
    loop_damping: bool = False
    attn_implementation: str | None = None
    dtype: str | None = None
    lora_r: int | None = None
    lora_alpha: int = 32
    layer_dropout: float | None = None
    layer_dropout_curriculum: str = field(default="constant", metadata={"choices": list(DROPOUT_CURRICULA)})
    trainable_modules: list[str] | None = None
    dataset_name_or_path: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    validation_split: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    train_tokens: str | None = None
    validation_tokens: str | None = None
    validation_share: float | None = None
    max_eval_samples: int | None = None
    text_column: str = "text"
    document_separator: str | None = END_OF_TEXT
    generated_documents: int = 4000
    tokenizer_name_or_path: str | None = None
    train_vocab_size: int | None = None
    packing: str | None = field(default=None, metadata={"choices": list(PACKINGS)})
    block_size: int = 512
    cache_dir: str | None = None
    task: str = field(default="pretrain", metadata={"choices": ["pretrain", "sft"]})
    plot: bool = False

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ValueError(
                "Give exactly one of `model_name_or_path` (to start from its weights) and `model_type` (random "
                f"weights), got {self.model_name_or_path!r} and {self.model_type!r}."
            )
        self.config_overrides = parse_overrides(self.config_overrides)
        if self.config_overrides and self.model_type is None:
            raise ValueError("`config_overrides` needs `model_type`: a checkpoint brings its own config.")
        if self.num_loops is not None and self.model_name_or_path is None:
            raise ValueError(
                "`num_loops` is for a checkpoint. With `model_type` set it in `config_overrides` of `looped_llama`."
            )
        if self.num_loops is None and (self.loop_block is not None or self.loop_damping):
            raise ValueError("`loop_block` and `loop_damping` need `num_loops`, how often the block runs.")
        if self.lora_r is not None and self.trainable_modules:
            raise ValueError("`lora_r` trains adapters alone: leave out `trainable_modules`.")
        for one, other in (("tokenizer_name_or_path", "train_vocab_size"), ("train_file", "dataset_name_or_path")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"Give one of `{one}` and `{other}`, not both.")
        if self.document_separator is not None:
            self.document_separator = self.document_separator.replace("\\n", "\n")
        if (self.train_tokens is None) != (self.validation_tokens is None):
            raise ValueError("`train_tokens` and `validation_tokens` go together: give both or none.")
        texts = ("train_file", "dataset_name_or_path", "validation_file", "validation_split", "validation_share")
        if self.train_tokens is not None:
            if given := [name for name in (*texts, "train_vocab_size") if getattr(self, name) is not None]:
                raise ValueError(f"`train_tokens` takes the place of text: leave out `{given[0]}`.")
            if self.task == "sft" or self.packing not in (None, "blocks"):
                raise ValueError("`train_tokens` is for `task=pretrain` with `packing=blocks`.")
        if self.task == "sft" and (self.train_vocab_size is not None or self.packing not in (None, "none")):
            raise ValueError("`task=sft` takes no `train_vocab_size` and no `packing`. Leave them out.")


def load_data(args: ScriptArguments):
    """Data for training and for validation: documents, encoded shards, or the rows of SFT."""
    if args.train_tokens is not None:
        return load_encoded(args.train_tokens), load_encoded(args.validation_tokens)
    sft = args.task == "sft"
    source = args.train_file or args.dataset_name_or_path
    if source is None and sft:
        problems = generate_word_problems(args.generated_documents)
        rows = [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in problems]
        return Dataset.from_list(rows).train_test_split(0.1, shuffle=False).values()
    if source is None:
        return generate_documents(args.generated_documents, max(1, args.generated_documents // 10))

    def load(name, split):
        if sft:
            return load_split(name, split, configs=(args.dataset_config,) if args.dataset_config else ())
        return load_documents(name, split, args.dataset_config, args.text_column, args.document_separator)

    train = load(source, args.dataset_split)
    if args.validation_file is not None:
        return train, load(args.validation_file, args.validation_split or "validation")
    if args.validation_split is not None:
        return train, load(source, args.validation_split)
    if args.validation_share is not None and sft:
        return train.train_test_split(args.validation_share, shuffle=False).values()
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
    return load_saved_tokenizer(name)


def load_model(args: ScriptArguments, tokenizer):
    """The checkpoint, or a model with random weights."""
    settings = {"attn_implementation": args.attn_implementation, "dtype": args.dtype}
    settings = {name: value for name, value in settings.items() if value is not None}
    if args.model_type is not None:
        model = model_from_scratch(args.model_type, args.config_overrides, tokenizer, **settings)
    elif args.num_loops is not None:
        loops = {"num_loops": args.num_loops, "loop_block": args.loop_block, "loop_damping": args.loop_damping}
        model = load_looped_model(args.model_name_or_path, **loops, **settings)
    else:
        model = load_checkpoint(args.model_name_or_path, **settings)
    check_positions(model.config, args.block_size)
    if args.trainable_modules:
        freeze_all_but(model, args.trainable_modules)
    if args.lora_r is not None:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=args.lora_r, lora_alpha=args.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    return model


def packed_rows(args: ScriptArguments, data: list[str] | EncodedCorpus, tokenizer) -> torch.utils.data.Dataset:
    """Rows of `block_size` tokens."""
    if isinstance(data, EncodedCorpus):
        data.check_tokenizer(tokenizer)
        return TokenBlocks(data.shards, args.block_size)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids, ends = encode_documents(data, tokenizer, args.cache_dir)
    return pack_rows(ids, ends, args.block_size, args.packing or "blocks", pad)


def make_trainer(args: ScriptArguments, training_args: PretrainingConfig, model, tokenizer, train, validation):
    """The task's trainer, with its rows."""

    if args.task == "sft":
        from hf_evidenceflow.trainers.completion_trainer import CompletionConfig, CompletionTrainer

        trainer_class = CompletionTrainer
        training_args = CompletionConfig.from_pretraining(
            training_args, max_length=args.block_size, assistant_only_loss="messages" in train.column_names
        )
    else:
        trainer_class = PretrainingTrainer
        train, validation = packed_rows(args, train, tokenizer), packed_rows(args, validation, tokenizer)
        if args.packing == "documents":
            check_document_isolation(model, train)
    if args.max_eval_samples is not None:
        rows = range(min(args.max_eval_samples, len(validation)))
        validation = validation.select(rows) if args.task == "sft" else Subset(validation, rows)
    return trainer_class(
        model,
        training_args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[LogFileCallback()],
    )


def draw_target_mask(trainer: PretrainingTrainer, config: EvidenceFlowConfig) -> Path:
    """Draw what each supervised layer's released features are, and how far all are from the target."""
    from hf_evidenceflow.report.target_mask import distances_by_block, plot_target_mask

    rows = [trainer.eval_dataset[row]["input_ids"] for row in range(min(16, len(trainer.eval_dataset)))]
    model = trainer.accelerator.unwrap_model(trainer.model)
    layers = supervised_layers(config, model.config.get_text_config().num_hidden_layers)
    distances = distances_by_block(model, torch.stack([torch.as_tensor(row) for row in rows]), layers)
    return plot_target_mask(distances, layers, Path(trainer.args.output_dir) / "target_mask.png")


def main(
    argv: list[str] | None = None,
    arguments: type[ScriptArguments] = ScriptArguments,
    then: Callable[[PretrainingTrainer, ScriptArguments, RunRecord], None] | None = None,
    prepare: Callable[[PretrainingTrainer, ScriptArguments], None] | None = None,
) -> PretrainingTrainer:
    """For recipes that add to this one: their `arguments`, and what they do with the trained model (or before)."""
    parser = RecipeParser((arguments, EvidenceFlowArguments, PretrainingConfig), __doc__)
    script_args, evidence_args, training_args = parser.parse_args_and_config(argv)
    if script_args.plot and importlib.util.find_spec("matplotlib") is None:
        raise ImportError("`curves.png` needs matplotlib: `pip install hf-evidenceflow[plots]`, or drop `--plot`.")
    evidence_config = evidence_args.config()
    set_seed(training_args.seed)

    with training_run(
        training_args.output_dir,
        training_args.resume_from_checkpoint,
        script=script_args,
        evidence=evidence_args,
        training=training_args,
    ) as run:
        train, validation = load_data(script_args)
        tokenizer = load_tokenizer(script_args, train)
        model = load_model(script_args, tokenizer)
        trainer = make_trainer(script_args, training_args, model, tokenizer, train, validation)
        if script_args.layer_dropout is not None:
            curriculum = script_args.layer_dropout_curriculum
            trainer.add_callback(hf_evidenceflow.LayerDropoutCallback(script_args.layer_dropout, curriculum))
        if evidence_config is not None:
            hf_evidenceflow.EvidenceFlowCallback(evidence_config).add_to(trainer)
        trainer.model_card_dataset = (
            script_args.dataset_name_or_path or script_args.train_file or script_args.train_tokens
        )
        if expert_modules(trainer.model):
            trainer.callback_handler.callbacks.insert(0, RouterStatisticsCallback())  # before the reporters
        if prepare is not None:
            prepare(trainer, script_args)
        print(
            f"{trainer.model.num_parameters():,} parameters, {len(tokenizer)} tokens, "
            f"{len(trainer.train_dataset)} rows for training, {len(trainer.eval_dataset)} for validation"
        )

        trainer.train(resume_from_checkpoint=run.checkpoint)
        metrics = trainer.final_metrics()
        trainer.save_model()
        trainer.save_state()
        run.record.add(metrics=metrics)
        if trainer.is_world_process_zero():
            print(
                f"Perplexity {metrics['eval_perplexity']:.3f}, accuracy {metrics['eval_accuracy']:.4f}, "
                f"{metrics['train_seconds']:.1f} s of training"
            )
            if script_args.plot:
                from hf_evidenceflow.report.run_curves import plot_run_curves

                label = evidence_config.objective if evidence_config is not None else "plain"
                path = Path(training_args.output_dir) / "curves.png"
                plot_run_curves({label: trainer.state.log_history}, path)
                print(f"Curves: {path}")
                if evidence_config is not None and evidence_config.target_mask:
                    print(f"Target mask: {draw_target_mask(trainer, evidence_config)}")
        if then is not None:
            then(trainer, script_args, run.record)
        trainer.create_model_card()  # with the curves
        if training_args.push_to_hub:
            trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    run_recipe(main)
