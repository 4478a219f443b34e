"""
Small Llama models from scratch, each trained on a given number of tokens within one pass; the file of their losses.

The learning rate falls along a cosine that ends with the run: a loss read off the middle of a longer schedule is too
high, which is one of the differences between Kaplan et al. (2001.08361) and Hoffmann et al. (2203.15556).
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset
from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text, to_plain
from hf_evidenceflow.files import read_json, read_json_lines
from hf_evidenceflow.models.from_scratch import model_from_scratch


HEAD_SIZE = 8
SETTINGS_NAME = "run_settings.json"


def small_llama(width: int, layers: int, block_size: int, tokenizer) -> LlamaForCausalLM:
    """
    A Llama with random weights; the seed is torch's.

    Args:
        width (`int`):
            Size of the hidden state, a multiple of 8.
        layers (`int`):
            Number of layers.
        block_size (`int`):
            Longest row in tokens.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        [`~transformers.LlamaForCausalLM`]: the model, with tied embeddings.

    Raises:
        `ValueError`: if `width` is not a positive multiple of 8.
    """
    if width < HEAD_SIZE or width % HEAD_SIZE:
        raise ValueError(f"A width must be a positive multiple of {HEAD_SIZE}, got {width}.")
    sizes = {
        "hidden_size": width,
        "intermediate_size": 8 * math.ceil(width / 3),  # with three matrices the 8 width^2 weights of two of 4 width
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_SIZE,
        "num_key_value_heads": width // HEAD_SIZE,
        "max_position_embeddings": block_size,
        "tie_word_embeddings": True,
    }
    return model_from_scratch("llama", sizes, tokenizer)


def count_parameters(model) -> tuple[int, int]:
    """
    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model; tied weights count once.

    Returns:
        `tuple[int, int]`: all parameters, and those outside the embeddings of the tokens.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {id(layer.weight): layer.weight.numel() for layer in _embedding_layers(model)}
    return total, total - sum(embeddings.values())


def train_run(
    settings: Mapping[str, Any], rows: Dataset, held_out: Dataset, tokenizer, save_to: str | os.PathLike | None = None
) -> dict[str, Any]:
    """
    Train one model on the first rows of a text, once.

    Args:
        settings (`Mapping[str, Any]`):
            `width`, `layers`, `tokens`, `block_size`, `batch_size` in rows, `learning_rate` and `seed`.
        rows (`Dataset`):
            Rows of `block_size` tokens; the run takes the first `tokens / block_size` of them.
        held_out (`Dataset`):
            Rows to measure the loss on.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        save_to (`str` or `os.PathLike`, *optional*):
            Folder for the model.

    Returns:
        `dict[str, Any]`: the settings with `parameters`, `non_embedding`, `tokens` as really trained on, and `loss`
        in nats a token.

    Raises:
        `ValueError`: if there are fewer rows than the run needs, or the run has no whole batch.
    """
    batch = settings["batch_size"] * settings["block_size"]
    steps = settings["tokens"] // batch
    needed = steps * settings["batch_size"]
    if steps < 1:
        raise ValueError(f"A run of {settings['tokens']} tokens has no whole batch of {batch}. Take more tokens.")
    if needed > len(rows):
        raise ValueError(
            f"A run of {settings['tokens']} tokens does not fit into one pass over {len(rows)} rows of "
            f"{settings['block_size']}. Give more text, or make the budget smaller."
        )
    set_seed(settings["seed"])
    model = small_llama(settings["width"], settings["layers"], settings["block_size"], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=32,
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 20),
            adam_beta2=0.95,
            weight_decay=0.0,
            seed=settings["seed"],
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(model, arguments, train_dataset=Subset(rows, range(needed)), eval_dataset=held_out)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
        if save_to is not None:
            trainer.save_model(str(save_to))
            tokenizer.save_pretrained(str(save_to))
    total, non_embedding = count_parameters(model)
    return {**settings, "tokens": steps * batch, "parameters": total, "non_embedding": non_embedding, "loss": loss}


class RunsFile:
    """
    Finished runs, a JSON object a line, each written as soon as it is there.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        resume (`bool`, *optional*, defaults to `True`):
            Whether runs that it holds already count; if not, the file starts empty.

    Raises:
        `ValueError`: if the file is not what this class writes.
    """

    def __init__(self, path: str | os.PathLike, resume: bool = True):
        self.path, self.lines = Path(path), []
        if resume and self.path.exists():
            try:
                self.lines = read_json_lines(self.path) if self.path.stat().st_size else []
                self.lines = [{"settings": line["settings"], "result": line["result"]} for line in self.lines]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.path} is not a file of runs ({error!r}). Move it away, or pass `--resume false`."
                ) from error

    def find(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The result of the run with these very settings, or `None`."""
        settings = to_plain(settings)
        return next((line["result"] for line in self.lines if line["settings"] == settings), None)

    def add(self, settings: Mapping[str, Any], result: Mapping[str, Any], saved_to: Path | None = None) -> None:
        """Append a run; the file is replaced whole, so that a crash leaves the old one or the new one."""
        line = {"settings": to_plain(settings), "result": to_plain(result)}
        self.lines = [*(former for former in self.lines if former["settings"] != line["settings"]), line]
        atomic_write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        if saved_to is not None:
            atomic_write_json(saved_to / SETTINGS_NAME, settings)

    def is_saved(self, settings: Mapping[str, Any], folder: Path) -> bool:
        """Whether `folder` holds the model of the run with these very settings."""
        path = folder / SETTINGS_NAME
        return path.exists() and read_json(path) == to_plain(settings)


def plan_grid(
    sizes: Mapping[int, int], budgets: Sequence[float], batch_tokens: int, most_tokens: int, fewest_steps: int = 80
) -> list[tuple[float, int, int]]:
    """
    Pairs of a model and a budget whose run is neither a handful of steps nor more than one pass.

    Args:
        sizes (`Mapping[int, int]`):
            Parameters of the models by their width.
        budgets (`Sequence[float]`):
            FLOPs; a run takes `budget / (6 * parameters)` tokens, in whole batches.
        batch_tokens (`int`):
            Tokens a step.
        most_tokens (`int`):
            Tokens of the text.
        fewest_steps (`int`, *optional*, defaults to `80`):
            Shortest run that counts.

    Returns:
        `list[tuple[float, int, int]]`: budget, width and tokens of each run.

    Raises:
        `ValueError`: if no run is left.
    """
    grid = []
    for budget in sorted(budgets):
        for width, parameters in sizes.items():
            tokens = round(budget / (6 * parameters * batch_tokens)) * batch_tokens
            if fewest_steps * batch_tokens <= tokens <= most_tokens:
                grid.append((float(budget), width, tokens))
    if not grid:
        raise ValueError(
            f"No budget of {list(budgets)} FLOPs gives a model of {list(sizes.values())} parameters at least "
            f"{fewest_steps * batch_tokens} and at most {most_tokens} tokens. Change `budgets`, or give more text."
        )
    return grid


def _embedding_layers(model) -> list[torch.nn.Module]:
    return [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
