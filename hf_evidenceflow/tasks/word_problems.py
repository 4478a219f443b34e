"""Makes word problems in GSM8K's format that a tiny model can learn to solve, without any download."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .generated import distinct_problems, hold_out, spoil, word_level_tokenizer
from .text import MARKER


NAMES = ("Ann", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
OBJECTS = ("apples", "books", "cards", "coins", "pens", "shells", "stamps", "toys")
OPERATIONS = {"add": "+", "subtract": "-", "multiply": "*"}

# A word takes the space before it; a digit does not, so that each digit is one token wherever it stands
_PIECE = r" ?[A-Za-z]+|##|[^A-Za-z]"


@dataclass(frozen=True)
class WordProblemTemplate:
    """
    Sentences of one kind of problem. `{name}` and `{objects}` are the same in all of them; `{n}` is a number.

    Args:
        opening, question (`str`):
            State the number to begin with, and ask for the one at the end.
        add, subtract, multiply (`str`):
            State that `{n}` come in, that `{n}` go out, and (*optional*) that there are `{n}` times as many.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks import WordProblemTemplate, generate_word_problems

    >>> bus = WordProblemTemplate("{n} people ride a bus.", "{n} get on.", "{n} get off.", "How many people ride now?")
    >>> problems = generate_word_problems(8, templates=[bus])
    ```
    """

    opening: str
    add: str
    subtract: str
    question: str
    multiply: str = "A magic spell makes it {n} times as many."


TEMPLATES = (
    WordProblemTemplate(
        "{name} has {n} {objects}.",
        "{name} buys {n} more.",
        "{name} gives {n} away.",
        "How many {objects} does {name} have now?",
    ),
    WordProblemTemplate(
        "There are {n} {objects} in a basket.",
        "{name} puts {n} in.",
        "{name} takes {n} out.",
        "How many {objects} are in the basket?",
    ),
    WordProblemTemplate(
        "{name} starts with {n} {objects}.",
        "{name} wins {n}.",
        "{name} loses {n}.",
        "How many {objects} are left at the end?",
    ),
    WordProblemTemplate(
        "A shop has {n} {objects}.",
        "{name} brings {n} more.",
        "The shop sells {n} to {name}.",
        "How many {objects} does the shop have now?",
    ),
    WordProblemTemplate(
        "{name} collects {n} {objects}.",
        "A friend adds {n}.",
        "A thief steals {n}.",
        "How many {objects} does {name} keep?",
    ),
    WordProblemTemplate(
        "On a table lie {n} {objects}.",
        "{name} lays {n} beside them.",
        "{name} picks up {n}.",
        "How many {objects} lie on the table?",
    ),
)


def generate_word_problems(
    n: int,
    seed: int = 0,
    templates: Sequence[WordProblemTemplate] = TEMPLATES,
    operations: Sequence[str] = ("add", "subtract"),
    max_number: int = 6,
    steps: int = 2,
) -> list[dict]:
    """
    Different word problems with their solutions, as rows with `question` and `answer` in the format of GSM8K.

    A solution has one line per step, then the marker and the result: `3+4=7`, `7-2=5`, `#### 5`. No number is ever
    below 0.

    Args:
        n (`int`):
            Number of problems.
        seed (`int`, *optional*, defaults to `0`):
            The same seed gives the same problems, and the first of a longer list.
        templates (`Sequence[WordProblemTemplate]`, *optional*, defaults to `TEMPLATES`):
            Kinds of problems to mix.
        operations (`Sequence[str]`, *optional*, defaults to `("add", "subtract")`):
            What a step may do: `add`, `subtract`, `multiply`.
        max_number (`int`, *optional*, defaults to `6`):
            Largest number in a question; results may be larger.
        steps (`int`, *optional*, defaults to `2`):
            Number of operations in a problem.

    Raises:
        `ValueError`: if an argument is out of its range, or if the settings do not allow so many different problems.
    """
    _check(n, templates, operations, max_number, steps)
    rng = random.Random(seed)
    settings = (
        f"`max_number={max_number}`, `steps={steps}`, {len(templates)} templates and the operations "
        f"{', '.join(operations)}"
    )
    return distinct_problems(n, lambda: _draw(rng, rng.choice(templates), operations, max_number, steps), settings)


def split_word_problems(train: int, test: int, seed: int = 0, **settings) -> dict[str, list[dict]]:
    """
    Problems under `"train"` and `"test"`; no question is in both, and the test problems do not depend on how many
    there are for training. `settings` are further arguments of [`generate_word_problems`].
    """
    return hold_out(generate_word_problems(train + test, seed, **settings), test)


def make_sloppy(problems: Sequence[dict], share: float = 0.6, seed: int = 0) -> list[dict]:
    """
    New rows of the same problems, but a `share` of the solutions leaves out the last step and so ends in a wrong
    number.

    A model warmed up on them knows the format and is right in part of its samples only, which is what RL needs to
    begin with. A `ValueError` if `share` is not in [0, 1], or a solution has a single step.
    """
    return spoil(problems, share, seed, _leave_out_last_step)


def build_word_problem_tokenizer(templates: Sequence[WordProblemTemplate] = TEMPLATES):
    """
    A tokenizer for the problems of [`generate_word_problems`] from these templates, with numbers of any size.

    Every token decodes to its own text, spaces included, so that decoding gives back the text that was encoded. The
    marker `####` is the token `##` twice. Words that no problem has become the unknown token. See
    [`~hf_evidenceflow.tasks.generated.word_level_tokenizer`].
    """
    return word_level_tokenizer(_pieces(templates), _PIECE)


def _check(n: int, templates: Sequence, operations: Sequence[str], max_number: int, steps: int) -> None:
    for name, value, least in (("n", n, 0), ("max_number", max_number, 1), ("steps", steps, 1)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if not templates:
        raise ValueError("`templates` must hold at least one template, got none.")
    if not operations or not set(operations) <= set(OPERATIONS):
        raise ValueError(f"`operations` must be some of {', '.join(OPERATIONS)}, got {operations!r}.")
    if "multiply" in operations and max_number < 2:
        raise ValueError(f"`max_number` must be at least 2 to multiply, got {max_number}.")


def _draw(
    rng: random.Random, template: WordProblemTemplate, operations: Sequence[str], max_number: int, steps: int
) -> dict | None:
    """A question and its solution; `None` if a number would fall below 0 or a step would change nothing."""
    words = {"name": rng.choice(NAMES), "objects": rng.choice(OBJECTS)}
    total = rng.randint(min(2, max_number), max_number)  # not "has 1 apples"
    sentences = [template.opening.format(n=total, **words)]
    lines = []
    for _ in range(steps):
        operation = rng.choice(operations)
        number = rng.randint(2 if operation == "multiply" else 1, max_number)
        before, total = total, _apply(operation, total, number)
        if total < 0 or total == before:
            return None
        sentences.append(getattr(template, operation).format(n=number, **words))
        lines.append(f"{before}{OPERATIONS[operation]}{number}={total}")
    sentences.append(template.question.format(**words))
    return {"question": " ".join(sentences), "answer": "\n".join([*lines, f"{MARKER} {total}"])}


def _apply(operation: str, total: int, number: int) -> int:
    return {"add": total + number, "subtract": total - number, "multiply": total * number}[operation]


def _leave_out_last_step(problem: dict, _: random.Random) -> dict:
    solution = problem["answer"]
    lines = solution.split("\n")[:-2]
    if not lines:
        raise ValueError(
            f"A solution of a single step has no step to leave out, got {solution!r}. Generate problems with "
            "`steps=2` or more."
        )
    return {"answer": "\n".join([*lines, f"{MARKER} {lines[-1].rpartition('=')[2]}"])}


def _pieces(templates: Sequence[WordProblemTemplate]) -> list[str]:
    """All pieces of the problems in the byte-level alphabet, in a fixed order."""
    sentences = [
        sentence
        for template in templates
        for sentence in (template.opening, template.add, template.subtract, template.multiply, template.question)
    ]
    text = " ".join([*sentences, *NAMES, *OBJECTS]).replace("{name}", "").replace("{objects}", "").replace("{n}", "")
    words = sorted(set(re.findall("[A-Za-z]+", text)))
    symbols = sorted(set(re.findall("[^A-Za-z ]", text)) | {"=", "\n", " ", *OPERATIONS.values()})
    pieces = [*"0123456789", "##", *symbols, *words, *(" " + word for word in words)]
    return [piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces]
