"""A prompt of real tokens before the text, found by GCG: what prompt tuning does without leaving the vocabulary."""

import time
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_evidenceflow.recipes.course.peft_methods.task import LabelledTask
from hf_evidenceflow.recipes.course.peft_methods.tuning import label_token
from hf_evidenceflow.recipes.course.prompt_search.gcg import search_prompt
from hf_evidenceflow.recipes.course.prompt_search.objective import Item, PromptObjective
from hf_evidenceflow.recipes.course.prompt_search.prompt_tokens import allowed_tokens, random_prompt


def search_discrete_prompt(
    model: PreTrainedModel,
    task: LabelledTask,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    budget: int,
    items: int = 32,
    seed: int = 0,
) -> tuple[str, dict]:
    """
    Search for a prompt that stands before each text, as the virtual tokens of prompt tuning do.

    Args:
        model (`PreTrainedModel`):
            A causal LM; it is not trained.
        task ([`LabelledTask`]):
            The task.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        length (`int`):
            Tokens of the prompt.
        budget (`int`):
            Prompts to evaluate, each on all items; a gradient counts as 3.
        items (`int`, *optional*, defaults to `32`):
            Rows of the training data that a prompt is evaluated on, the first ones.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the first prompt and of the replacements.

    Returns:
        `tuple[str, dict]`: the prompt, and what [`summarise`] takes of a seed: no `trained` parameters and a `share`
        of 0, `seconds`, the `accuracy` by test, and beside it the `loss`.
    """
    start = time.perf_counter()
    objective = PromptObjective(model, _items(task.train[:items], task.template, tokenizer))
    allowed = allowed_tokens(tokenizer, objective.vocab_size)
    first = random_prompt(allowed, length, seed)
    found = search_prompt(first, objective.losses, objective.gradient, allowed, budget, seed=seed)
    seconds = time.perf_counter() - start
    accuracy = {}
    for name, rows in task.tests.items():
        right = PromptObjective(model, _items(rows, task.template, tokenizer)).right(found.prompt)
        accuracy[name] = sum(right) / len(right)
    measured = {"trained": 0, "share": 0.0, "seconds": seconds, "accuracy": accuracy, "loss": found.loss}
    return tokenizer.decode(found.prompt), measured


def _items(rows: Sequence[Mapping], template: str, tokenizer) -> list[Item]:
    return [
        Item([], [label_token(tokenizer, row["label"])], tokenizer(template.format(text=row["text"]))["input_ids"])
        for row in rows
    ]
