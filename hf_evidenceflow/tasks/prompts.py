"""Prompts: what the model is asked, in a chat or as plain text."""

import difflib
import inspect
import re
from collections.abc import Callable

from .text import MARKER


def build_system_prompt(answer_format: str) -> str:
    """
    System prompt that asks for the reasoning, then the marker `####`, then the final answer alone, which is
    `answer_format`, such as `"a number"`.
    """
    return (
        "You answer the user's question. First reason step by step. Then end with one line that holds the marker "
        f"{MARKER} and, after it, the final answer alone: {answer_format}. Write the marker {MARKER} only there, and "
        "nothing after the answer."
    )


def build_prompt(
    question: str, system_prompt: str | None = None, conversational: bool | str = True
) -> str | list[dict]:
    """
    The prompt of one question in one of the two formats that TRL takes: chat messages of the roles `system` (if there
    is a `system_prompt`) and `user`, or one text that ends in a line break, where the completion begins.

    Args:
        conversational (`bool` or `str`, *optional*, defaults to `True`):
            Whether to build chat messages. `False` is for tokenizers without a chat template, `"user"` for chat
            templates without system messages: the `system_prompt` stands before the question. [`chat_form`] says
            which.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks import build_prompt

    >>> build_prompt("How much is 2 + 3?", "Give a number.", conversational=False)
    'Give a number.\\n\\nHow much is 2 + 3?\\n'
    ```
    """
    question = question.strip()
    if conversational == "user":
        return [{"role": "user", "content": question if system_prompt is None else f"{system_prompt}\n\n{question}"}]
    if conversational:
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        return [*system, {"role": "user", "content": question}]
    return f"{question}\n" if system_prompt is None else f"{system_prompt}\n\n{question}\n"


def system_prompt_argument(option: str | None) -> dict[str, str | None]:
    """
    The argument of a loader for an option of a recipe: none for `None`, which leaves the task's own instruction, and
    `None` for the text `none`, which asks the question alone.
    """
    if option is None:
        return {}
    return {"system_prompt": None if option.lower() == "none" else option}


def chat_form(tokenizer, option: bool | None = None) -> bool | str:
    """
    The argument `conversational` of [`build_prompt`] and the loaders for a tokenizer: chat messages as the option of a
    recipe says, else where there is a chat template, and `"user"` where that refuses or drops a system message.
    """
    if option is None:
        option = tokenizer.chat_template is not None
    return "user" if option and not _takes_system_messages(tokenizer) else option


def _takes_system_messages(tokenizer) -> bool:
    from jinja2 import TemplateError

    system, question = "Give a number.", "How much is 2 + 3?"
    try:
        text = tokenizer.apply_chat_template(build_prompt(question, system), tokenize=False)
    except TemplateError:  # such as Gemma 2's "System role not supported"
        return False
    return system in text


def ask(dataset, read_row: Callable[[int, dict], dict], system_prompt: str | None, conversational: bool | str):
    """
    The rows of a task as the trainers take them: `prompt`, `answer`, `question` and what else `read_row` keeps.

    Args:
        dataset (`datasets.Dataset`):
            Rows in the format of the published set.
        read_row (`Callable[[int, dict], dict]`):
            Takes the number of a row, for errors, and the row to the columns to keep. `asked`, if it is there, is the
            question with all that is shown with it, and is not kept.
    """
    from datasets import Dataset

    rows = [read_row(index, row) for index, row in enumerate(dataset)]
    asked = [row.pop("asked", row["question"]) for row in rows]
    return Dataset.from_list(
        [{"prompt": build_prompt(text, system_prompt, conversational), **row} for text, row in zip(asked, rows)]
    )


def render_prompt(
    prompt: str | list[dict], tokenizer, chat_template_kwargs: dict | None = None
) -> tuple[str, list[int]]:
    """
    A prompt as the model sees it, in training and in evaluation: chat messages rendered with the generation prompt.

    Args:
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, such as `{"enable_thinking": False}`.

    Returns:
        `tuple[str, list[int]]`: the text, and its token ids: those of [`~trl.GRPOTrainer`].
    """
    if isinstance(prompt, str):
        return prompt, tokenizer(text=prompt)["input_ids"]
    check_chat_template_kwargs(chat_template_kwargs, tokenizer)
    kwargs = {"add_generation_prompt": True, **(chat_template_kwargs or {})}
    text = tokenizer.apply_chat_template(prompt, tokenize=False, **kwargs)
    # A chat template writes the special tokens itself
    return text, tokenizer(text=text, add_special_tokens=False)["input_ids"]


def check_chat_template_kwargs(kwargs: dict | None, tokenizer) -> None:
    """Raises a `ValueError` for an argument that the chat template does not read: a misspelt one changes nothing."""
    if not kwargs:
        return
    if tokenizer.chat_template is None:
        raise ValueError(
            f"`chat_template_kwargs={kwargs}`, but the tokenizer has no chat template. Give it the one of the "
            "training, or `chat_template_kwargs '{}'`."
        )
    template = tokenizer.chat_template  # a text, or several by name
    words = set(re.findall(r"\w+", template if isinstance(template, str) else " ".join(template.values())))
    words |= inspect.signature(tokenizer.apply_chat_template).parameters.keys()
    for name in kwargs:
        if name not in words:
            close = difflib.get_close_matches(name, words, n=1, cutoff=0.8)
            remedy = f"Nearest: `{close[0]}`." if close else "Leave it out, or give another template."
            raise ValueError(f"`chat_template_kwargs` has `{name}`, which the chat template does not read. {remedy}")


def prompt_length(prompt: str | list[dict], tokenizer, chat_template_kwargs: dict | None = None) -> int:
    """Tokens of a prompt as [`render_prompt`] gives them."""
    return len(render_prompt(prompt, tokenizer, chat_template_kwargs)[1])


def filter_long_prompts(dataset, tokenizer, max_prompt_length: int, chat_template_kwargs: dict | None = None):
    """
    Drops the prompts of more than `max_prompt_length` tokens, as [`render_prompt`] counts them. No prompt is ever cut:
    a question without its end has another answer.

    Returns:
        `tuple[datasets.Dataset, int]`: the data set without the long prompts, and the number of prompts dropped.

    Raises:
        `ValueError`: if the limit is below 1, or if no prompt is left.
    """
    if max_prompt_length < 1:
        raise ValueError(f"`max_prompt_length` must be at least 1 token, got {max_prompt_length}.")

    lengths = [prompt_length(prompt, tokenizer, chat_template_kwargs) for prompt in dataset["prompt"]]
    kept = [index for index, tokens in enumerate(lengths) if tokens <= max_prompt_length]
    if not kept:
        raise ValueError(
            f"All {len(lengths)} prompts are longer than `max_prompt_length={max_prompt_length}` tokens (the shortest "
            f"has {min(lengths, default=0)}). Raise the limit or shorten the system prompt."
        )
    dropped = len(lengths) - len(kept)
    return (dataset.select(kept) if dropped else dataset), dropped
