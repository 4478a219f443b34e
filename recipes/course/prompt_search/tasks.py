"""Tasks in the small world of the course: a query, an answer, and a prompt that a person would put between them."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from hf_evidenceflow.recipes.course.prompt_search.objective import Item
from hf_evidenceflow.recipes.course.shared.corpus import ANIMALS, COUNTRIES, PEOPLE, PRONOUNS


class Question(NamedTuple):
    """
    A question in words.

    Args:
        query (`str`):
            Text before the prompt.
        answer (`str`):
            Text after it.
        group (`str`):
            What it is about: questions of one group are all for the search, or all held out.
    """

    query: str
    answer: str
    group: str


def language_questions() -> list[Question]:
    """Which language is spoken where somebody went: 240 questions on 12 countries."""
    return [
        Question(f"the {person} went to {capital} , the capital of {country} .\n", f" {language}", country)
        for country, capital, language in COUNTRIES
        for pair in PEOPLE
        for person in pair
    ]


def capital_questions() -> list[Question]:
    """The capital of the country just named: 12 questions."""
    return [
        Question(f"in {country} the people speak {language} .\n", f" {capital}", country)
        for country, capital, language in COUNTRIES
    ]


def gender_questions() -> list[Question]:
    """Whether the owner of an animal is a he or a she: 160 questions on 10 pairs of people."""
    return [
        Question(f"the {person} has a {animal} .\n", f" {PRONOUNS[gender][0]}", pair[0])
        for pair in PEOPLE
        for gender, person in enumerate(pair)
        for animal, _, _ in ANIMALS
    ]


# Questions and the prompt that a person would try, in the words of the stories
TASKS = {
    "language": (language_questions, "the people speak"),
    "capital": (capital_questions, "he saw the bridge and the tower of"),
    "gender": (gender_questions, "in the morning"),
}


def split_by_group(
    questions: Sequence[Question], search: int, held_out: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """
    Questions for the search and held-out ones on other groups.

    Args:
        questions (`Sequence[Question]`):
            All questions.
        search, held_out (`int`):
            Most questions of each kind.
        seed (`int`):
            Seed of the split.

    Returns:
        `tuple[list[Question], list[Question]]`: questions of half of the groups, and of the other half.

    Raises:
        `ValueError`: if there are fewer than two groups, or a number is below 1.
    """
    groups = sorted({question.group for question in questions})
    if len(groups) < 2 or min(search, held_out) < 1:
        raise ValueError(
            "A split needs questions of at least 2 groups and at least 1 question on either side, got "
            f"{len(groups)} groups, {search} and {held_out}."
        )
    rng = random.Random(seed)
    searched = set(rng.sample(groups, len(groups) // 2))
    shuffled = rng.sample(list(questions), len(questions))
    first = [question for question in shuffled if question.group in searched]
    second = [question for question in shuffled if question.group not in searched]
    return first[:search], second[:held_out]


def encode_questions(questions: Sequence[Question], tokenizer) -> list[Item]:
    """
    Questions as token ids.

    Args:
        questions (`Sequence[Question]`):
            The questions.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.

    Returns:
        `list[Item]`: query and answer, each encoded by itself.
    """

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return [Item(encode(question.query), encode(question.answer)) for question in questions]
