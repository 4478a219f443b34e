"""Chain-of-thought data that a model writes itself: several sampled chains a question, kept by their answers.

The same chains give three kinds of data: right ones to imitate (rejection sampling), and pairs of a right and a wrong
one of the same question, from which a reward model and DPO learn.

Source: Zelikman et al. 2022 (STaR, arXiv 2203.14465) and Yuan et al. 2023 (rejection sampling fine-tuning, arXiv
2308.01825), section 3.3, which keeps each different chain once.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.statistics import mean_interval
from hf_evidenceflow.recipes.course.instruction_tuning.templates import INSTRUCTIONS, render_instruction
from hf_evidenceflow.tasks.gsm8k import grade


# What is asked for -> the task of `INSTRUCTIONS` that asks for it
ORDERS = {"steps, then the answer": "explain", "the answer, then steps": "justify", "the answer alone": "answer"}


@dataclass(frozen=True)
class SampledChains:
    """
    The chains of one question.

    Args:
        prompt (`str`):
            What the model was given.
        right (`tuple[str, ...]`):
            Different chains with the right answer, in the order of their first draw.
        wrong (`tuple[str, ...]`):
            Different chains with another answer or none.
        right_share (`float`):
            Share of right ones among all draws, repetitions counted.
    """

    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    right_share: float


def sample_chains(
    model,
    tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    num_samples: int,
    max_new_tokens: int,
    grader: Callable[[str, str], float] = grade,
    **sampling,
) -> list[SampledChains]:
    """
    Draw several chains a question and sort them by the answer that they come to.

    A chain that ran into `max_new_tokens` counts as wrong, whatever number stands in it: to imitate it would teach the
    model not to end.

    Args:
        model, tokenizer:
            Causal LM and its tokenizer.
        prompts (`Sequence[str]`):
            Questions as the model is to see them.
        answers (`Sequence[str]`):
            The right answer of each.
        num_samples (`int`):
            Chains a question.
        max_new_tokens (`int`):
            Longest chain.
        grader (`Callable`, *optional*, defaults to [`grade`]):
            Gives 1.0 for a text with the right answer.
        **sampling:
            Further arguments of [`generate_completions`], such as `temperature`, `batch_size` and `seed`.

    Returns:
        `list[SampledChains]`: in the order of the prompts.

    Raises:
        `ValueError`: if there is not one answer for each prompt.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"There must be one answer for each prompt, got {len(answers)} for {len(prompts)}.")
    drawn = [[None] * num_samples for _ in prompts]
    for batch in generate_completions(
        model,
        tokenizer,
        prompts,
        do_sample=True,
        num_samples=num_samples,
        max_new_tokens=max_new_tokens,
        **sampling,
    ):
        for item in batch:
            right = item.finished and grader(item.text, answers[item.index]) > 0
            drawn[item.index][item.sample] = (item.text, right)
    return [
        SampledChains(
            prompt,
            tuple(dict.fromkeys(text for text, right in chains if right)),
            tuple(dict.fromkeys(text for text, right in chains if not right)),
            sum(right for _, right in chains) / num_samples,
        )
        for prompt, chains in zip(prompts, drawn)
    ]


def preference_pairs(sampled: Sequence[SampledChains], per_question: int = 1, seed: int = 0) -> list[dict]:
    """
    Pairs of a right and a wrong chain of the same question. Questions with chains of one kind only have none.

    Args:
        sampled (`Sequence[SampledChains]`):
            Chains of [`sample_chains`].
        per_question (`int`, *optional*, defaults to `1`):
            Most pairs of a question; no chain is in two of them.
        seed (`int`, *optional*, defaults to `0`):
            Seed of who meets whom.

    Returns:
        `list[dict]`: `prompt`, `chosen` and `rejected`.
    """
    rng = random.Random(seed)
    pairs = []
    for chains in sampled:
        right, wrong = (rng.sample(kind, len(kind)) for kind in (chains.right, chains.wrong))
        pairs += [
            {"prompt": chains.prompt, "chosen": chosen, "rejected": rejected}
            for chosen, rejected in list(zip(right, wrong))[:per_question]
        ]
    return pairs


def grade_first_line(text: str, answer: str) -> float:
    """Grade an answer that steps follow, which would be no answer to [`grade`]."""
    return grade(text.strip().split("\n")[0], answer)


def compare_orders(model, tokenizer, problems: Sequence[dict], **sampling) -> dict[str, dict[str, float]]:
    """
    Right answers with and without a chain, by what the instruction asks for.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Model that was tuned on instructions of [`~.templates.INSTRUCTIONS`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        problems (`Sequence[dict]`):
            Rows with `question` and `answer`.
        **sampling:
            Of [`sample_chains`].

    Returns:
        `dict[str, dict[str, float]]`: `value`, `low` and `high` of the accuracy, the interval over problems.
    """
    answers, found = [row["answer"] for row in problems], {}
    for name, task in ORDERS.items():
        prompts = [render_instruction(row, INSTRUCTIONS[task][0])["prompt"] for row in problems]
        grader = grade_first_line if task == "justify" else grade
        sampled = sample_chains(model, tokenizer, prompts, answers, grader=grader, **sampling)
        found[name] = mean_interval([item.right_share for item in sampled])._asdict()
    return found
