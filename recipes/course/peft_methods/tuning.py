"""Tunes a causal LM on a task by the label's token, and measures how often it gives the right one."""

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from hf_evidenceflow.recipes.course.peft_methods.task import LabelledTask


IGNORED = -100


def label_token(tokenizer: PreTrainedTokenizerBase, label: str) -> int:
    """
    The token that stands for a label: the first one of the word, with the space that follows the prompt.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        label (`str`):
            The word.

    Returns:
        `int`: the token.
    """
    return tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0]


def check_labels(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> None:
    """
    Refuses labels that their first tokens do not tell apart.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        labels (`Sequence[str]`):
            The words.

    Raises:
        `ValueError`: if two labels begin with the same token.
    """
    by_token = {}
    for label in labels:
        other = by_token.setdefault(label_token(tokenizer, label), label)
        if other != label:
            raise ValueError(
                f"The labels {other!r} and {label!r} begin with the same token. Name labels that differ in their "
                "first one, or take a larger vocabulary."
            )


def encode_rows(rows: Sequence[Mapping], template: str, tokenizer: PreTrainedTokenizerBase) -> dict:
    """
    The rows as token ids: the prompt, then the token of the label, padded on the right.

    On the left, the padding would stand between the virtual tokens of the prompt methods and the text.

    Args:
        rows (`Sequence[dict]`):
            Rows of `text` and `label`.
        template (`str`):
            The prompt, with `{text}` in it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `dict`: `input_ids`, `attention_mask` and `labels` of `[B, T]`; the latter are the ids at the label and -100
        elsewhere.
    """
    ids = [
        [*tokenizer(template.format(text=row["text"]))["input_ids"], label_token(tokenizer, row["label"])]
        for row in rows
    ]
    shape = (len(ids), max(map(len, ids)))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = {
        "input_ids": torch.full(shape, padding),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, sequence in enumerate(ids):
        encoded["input_ids"][row, : len(sequence)] = torch.tensor(sequence)
        encoded["attention_mask"][row, : len(sequence)] = 1
        encoded["labels"][row, len(sequence) - 1] = sequence[-1]
    return encoded


def batch_indices(rows: int, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """
    Which rows each step takes: all of them in a random order, then in another one. It depends on nothing but the
    arguments, so that every method gets the same batches.

    Args:
        rows, steps, batch_size, seed (`int`):
            Rows of the data, number of batches, rows of each, and the seed of the order.

    Yields:
        `list[int]`: the rows of a step.
    """
    generator, order = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        while len(order) < batch_size:
            order += torch.randperm(rows, generator=generator).tolist()
        yield order[:batch_size]
        order = order[batch_size:]


def tune(
    model: torch.nn.Module,
    task: LabelledTask,
    tokenizer: PreTrainedTokenizerBase,
    learning_rate: float,
    steps: int,
    batch_size: int = 32,
    seed: int = 0,
) -> dict:
    """
    Tune what is trainable in a model: AdamW without weight decay, a tenth of the steps as warm-up, a cosine to 0, and
    gradients of norm 1 at most.

    Args:
        model (`torch.nn.Module`):
            A causal LM, or a [`~peft.PeftModel`] of one. It is trained in place.
        task ([`LabelledTask`]):
            The task; its `train` rows are taken.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        learning_rate (`float`):
            Highest learning rate.
        steps, batch_size (`int`):
            Number of steps, and rows of each.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the batches.

    Returns:
        `dict`: the `losses` of the steps in nats, and the `seconds`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start, losses = time.perf_counter(), []
    if parameters:
        model.train()
        encoded = encode_rows(task.train, task.template, tokenizer)
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        for indices in batch_indices(len(task.train), steps, batch_size, seed):
            longest = encoded["attention_mask"][indices].sum(1).max()
            batch = {name: value[indices, :longest].to(model.device) for name, value in encoded.items()}
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return {"losses": losses, "seconds": time.perf_counter() - start}


@torch.no_grad()
def accuracy(
    model: torch.nn.Module,
    rows: Sequence[Mapping],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 32,
) -> float:
    """
    Share of the rows after whose prompt the label's token is the likeliest of the whole vocabulary.

    Args:
        model (`torch.nn.Module`):
            A causal LM, or a [`~peft.PeftModel`] of one.
        rows, template, tokenizer:
            As in [`encode_rows`].
        batch_size (`int`, *optional*, defaults to `32`):
            Rows at a time.

    Returns:
        `float`: the share.
    """
    model.eval()
    right = 0
    for start in range(0, len(rows), batch_size):
        batch = encode_rows(rows[start : start + batch_size], template, tokenizer)
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        # Prompt tuning's logits begin at the virtual tokens, prefix tuning's at the text
        logits = model(**inputs).logits[:, -batch["input_ids"].shape[1] :]
        asked = batch["labels"][:, 1:] != IGNORED
        predicted = logits[:, :-1].argmax(-1).cpu()
        right += (predicted[asked] == batch["labels"][:, 1:][asked]).sum().item()
    return right / len(rows)
