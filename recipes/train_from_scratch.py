"""
Train a small Qwen2 or Llama from scratch on GSM8K's solutions, tokenizer included: a starting point for RL where no
pretrained checkpoint can be had.

```bash
python recipes/train_from_scratch.py --config recipes/configs/train_from_scratch/gsm8k.yaml \
    --dataset_name_or_path path/to/gsm8k --output_dir outputs/gsm8k-scratch
```

Such a model learns the format and some arithmetic, not to reason: expect an accuracy of a few per cent. `gsm8k.yaml`
takes about 40 minutes on two CPU cores, `smoke.yaml` about half a minute. Without `--dataset_name_or_path` the
problems are generated.

Outputs, in `output_dir`: a plain checkpoint with tokenizer and chat template, `run.json` (the run record), and
`problems.jsonl` where the problems were generated.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTTrainer

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.resumable_trainer import ResumableTrainerMixin
from hf_evidenceflow.run_folder.training_run import training_run
from hf_evidenceflow.tasks import generate_word_problems, load_gsm8k, prepare_gsm8k
from hf_evidenceflow.tokenization.training import train_backend
from hf_evidenceflow.trainers.precision import DeviceSFTConfig


# The system prompt is left out: a model that saw nothing else needs no instruction
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ message.content + '\\n' }}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass
class ScratchArguments:
    """
    Data and size of the model.

    Args:
        dataset_name_or_path (`str`, *optional*):
            GSM8K on the Hub, a local file or folder in its format. If not given, word problems are generated.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        generated_problems (`int`, *optional*, defaults to `4000`):
            Number of generated problems.
        vocab_size (`int`, *optional*, defaults to `2048`):
            Tokens of the byte-level BPE vocabulary; each digit is one token.
        model_type (`str`, *optional*, defaults to `"qwen2"`):
            `qwen2` or `llama`.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads (`int`,
        *optional*):
            Size of the model.
    """

    dataset_name_or_path: str | None = None
    dataset_split: str = "train"
    generated_problems: int = 4000
    vocab_size: int = 2048
    model_type: str = "qwen2"
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2

    def __post_init__(self):
        if self.model_type not in ("qwen2", "llama"):
            raise ValueError(f"`model_type` must be 'qwen2' or 'llama', got {self.model_type!r}.")


class ScratchTrainer(ResumableTrainerMixin, SFTTrainer):
    """TRL's trainer, resumable."""

    kept_attributes = ("_metrics", "_total_train_tokens")


def load_problems(args: ScratchArguments, seed: int) -> Dataset:
    """Rows with `prompt`, `answer`, `question` and `solution`."""
    if args.dataset_name_or_path is not None:
        return load_gsm8k(args.dataset_name_or_path, split=args.dataset_split)
    return prepare_gsm8k(Dataset.from_list(generate_word_problems(args.generated_problems, seed=seed)))


def save_problems(problems: Dataset, output_dir: str) -> None:
    """Writes generated problems in GSM8K's format, so that RL can train on them."""
    rows = ({"question": row["question"], "answer": row["solution"]} for row in problems)
    atomic_write_text(Path(output_dir) / "problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def train_tokenizer(texts, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with single digits, padding on the left and the chat template above."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_backend(texts, vocab_size, ["<|pad|>", "<|end|>"], digits=True),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def make_model(args: ScratchArguments, tokenizer):
    """A model with random weights."""
    config = AutoConfig.for_model(
        args.model_type,
        vocab_size=len(tokenizer),
        hidden_size=args.hidden_size,
        intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config)


def main(argv: list[str] | None = None) -> SFTTrainer:
    args, training_args = RecipeParser((ScratchArguments, DeviceSFTConfig), __doc__).parse_args_and_config(argv)
    set_seed(training_args.seed)

    with training_run(
        training_args.output_dir, training_args.resume_from_checkpoint, model=args, training=training_args
    ) as run:
        problems = load_problems(args, training_args.seed)
        if args.dataset_name_or_path is None:
            save_problems(problems, training_args.output_dir)
        tokenizer = train_tokenizer(
            (text for row in problems for text in (row["question"], row["solution"])), args.vocab_size
        )
        dataset = problems.map(
            lambda row: {"completion": [{"role": "assistant", "content": row["solution"]}]},
            remove_columns=["answer", "question", "solution"],
        )
        trainer = ScratchTrainer(
            make_model(args, tokenizer), args=training_args, train_dataset=dataset, processing_class=tokenizer
        )
        print(f"{trainer.model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(dataset)} problems")

        trainer.train(resume_from_checkpoint=run.checkpoint)

        trainer.save_model()
        trainer.save_state()
        run.record.add(metrics=trainer.state.log_history[-1])
    return trainer


if __name__ == "__main__":
    run_recipe(main)
