"""Training and evaluation sets that could not be rolled out or rewarded, refused before the first rollout."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from torch import nn

from ..data.token_ids import check_prompt_tokens
from ..tasks.grading import check_golds
from ..tasks.prompts import filter_long_prompts, prompt_length


logger = get_logger(__name__)

# What TRL hands to each reward function next to the columns
_FROM_TRAINER = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
}
_KEPT_COLUMNS = {"prompt", "image", "images"}


def check_data(trainer) -> None:
    """
    Refuse, with a `ValueError` that names the column or the row, data with which a [`~trl.GRPOTrainer`] could not roll
    out or reward. With an `environment_factory`, which writes the prompts, only the golds are checked.
    """
    check_golds(trainer.reward_funcs, trainer.train_dataset, trainer.eval_dataset)
    if trainer.environment_factories is None:
        datasets = [trainer.train_dataset, trainer.eval_dataset]
        check_columns(trainer.reward_funcs, datasets, trainer.args.remove_unused_columns)
        check_prompts(datasets, trainer._tokenizer, trainer.chat_template_kwargs)
        for dataset in _each(datasets):
            prompts = dataset["prompt"] if isinstance(dataset, Dataset) else ()
            check_prompt_tokens(prompts, trainer._tokenizer, trainer.model, trainer.chat_template_kwargs)


def check_columns(reward_funcs: Sequence[Any], datasets: Any, remove_unused_columns: bool = False) -> None:
    """
    Refuse data sets (one, or a list or dict of them) without the prompts, or without a column that a reward function
    takes. TRL keeps prompts and images only with `remove_unused_columns`.
    """
    for dataset in _each(datasets):
        columns = dataset.column_names
        if columns is None:  # a stream of unknown columns
            continue
        needed = {"prompt": "the rollout"}
        for function in reward_funcs:
            needed |= {column: f"the reward `{_name(function)}`" for column in _required_columns(function)}
        for column, user in needed.items():
            if column not in columns:
                raise ValueError(
                    f"The data set has no column `{column}`, which {user} needs; it has {', '.join(columns)}. Rename "
                    "the column that holds it."
                )
            if remove_unused_columns and column not in _KEPT_COLUMNS:
                raise ValueError(
                    f"`remove_unused_columns=True` removes the column `{column}`, which {user} needs. Set it to False."
                )


def check_prompts(datasets: Any, tokenizer, chat_template_kwargs: dict | None = None) -> None:
    """
    Refuse prompts that are empty or neither text nor chat messages, with the row of the first one. Streams are not
    read.
    """
    for dataset in _each(datasets):
        if isinstance(dataset, Dataset):
            for row, prompt in enumerate(dataset["prompt"]):
                check_prompt(prompt, tokenizer, chat_template_kwargs, f"Row {row}")


def check_prompt(prompt: Any, tokenizer, chat_template_kwargs: dict | None = None, place: str = "A row") -> None:
    """Refuse one prompt; see [`check_prompts`]. `place` is where it stands, for the error."""
    is_chat = isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt)
    if not isinstance(prompt, str) and not (is_chat and all(message.get("role") for message in prompt)):
        shown = repr(prompt)
        raise ValueError(
            f"{place} of the data set has a prompt that is neither a text nor a list of chat messages: "
            f"{shown[:80]}{'...' * (len(shown) > 80)} ({type(prompt).__name__}). Correct it, or remove the row."
        )
    written = prompt.strip() if isinstance(prompt, str) else any(message.get("content") for message in prompt)
    # White space, or nothing, may be something to a tokenizer that begins texts with a token
    if not written and (is_chat or not prompt_length(prompt, tokenizer, chat_template_kwargs)):
        raise ValueError(
            f"{place} of the data set has an empty prompt, from which nothing can be generated. Remove the row."
        )


def drop_long_prompts(dataset: Any, tokenizer, limit: int, chat_template_kwargs: dict | None = None) -> Any:
    """[`filter_long_prompts`] for streams too, which are filtered as they come; says how many were dropped."""

    def is_short(row):
        check_prompt(row["prompt"], tokenizer, chat_template_kwargs)
        return prompt_length(row["prompt"], tokenizer, chat_template_kwargs) <= limit

    if not isinstance(dataset, Dataset):
        return dataset.filter(is_short)
    kept, dropped = filter_long_prompts(dataset, tokenizer, limit, chat_template_kwargs)
    if dropped:
        logger.warning(
            f"Dropped {dropped} of {len(dataset)} training prompts with more than `max_prompt_length={limit}` tokens."
        )
    return kept


def _each(datasets: Any) -> Iterator[Any]:
    if isinstance(datasets, Mapping):
        datasets = list(datasets.values())
    for dataset in datasets if isinstance(datasets, list) else [datasets]:
        if isinstance(dataset, Mapping):
            yield from dataset.values()
        elif dataset is not None:
            yield dataset


def _required_columns(function: Any) -> list[str]:
    """Parameters of a reward function that have no default and do not come from the trainer."""
    if isinstance(function, nn.Module):
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return [name for name in names if name not in _FROM_TRAINER]


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
