"""Tasks that a causal LM answers with one word: of the small world, of any text, and from rows with labels."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_evidenceflow.recipes.course.shared.corpus import PEOPLE, generate_corpus


# The answers, and one pair of people in three, kept for the question whether a tuned model can do the same with words
# that it was not tuned on
ANSWERS, HELD_OUT = PEOPLE[0], PEOPLE[3::3]
GAP = "_"


@dataclass(frozen=True)
class LabelledTask:
    """
    Texts with labels, and how a causal LM is asked for them.

    Args:
        name (`str`):
            What is asked, in a few words.
        train (`Sequence[dict]`):
            Rows of `text` and `label`, the word to answer with.
        tests (`dict[str, Sequence[dict]]`):
            Such rows for each test, by its name. None of their texts is in `train`.
        template (`str`):
            The prompt, with `{text}` in it.

    Raises:
        `ValueError`: if the training rows or a test are empty, there is one label only, or the template has no
            `{text}`.
    """

    name: str
    train: Sequence[Mapping]
    tests: Mapping[str, Sequence[Mapping]]
    template: str

    def __post_init__(self):
        if "{text}" not in self.template:
            raise ValueError(f"`template` must have {{text}} in it, got {self.template!r}.")
        for name, rows in {"train": self.train, **self.tests}.items():
            if not rows:
                raise ValueError(f"The {name!r} rows of the task are empty. Give more rows or more text.")
        if len(self.labels) < 2:
            raise ValueError(f"A task needs two different labels at least, got {list(self.labels)}.")

    @property
    def labels(self) -> list[str]:
        """The words of all rows, in order."""
        return sorted({row["label"] for rows in (self.train, *self.tests.values()) for row in rows})


def gender_task(train: int, test: int, seed: int = 0) -> LabelledTask:
    """
    The first sentence of a story of the small world, and whether it is of a man or a woman.

    The sentence itself does not tell: that an actress is a woman follows from the `she` and `her` of the stories, so
    that a model needs to have read them. A third of the people is kept for a test of its own, at which a model that
    has not read the stories can only guess.

    Args:
        train, test (`int`):
            Rows for tuning and of each test, at most: `"new texts"` on the people of the tuning, and `"new words"` on
            the others. A quarter of the former's sentences at least is left for the test.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the texts.

    Returns:
        [`LabelledTask`]: the task; both answers are equally frequent in each split.

    Example:

    ```python
    >>> from hf_evidenceflow.recipes.course.peft_methods.task import gender_task

    >>> gender_task(2, 1).train[0]  # doctest: +SKIP
    {'text': 'the actress went to rome , the capital of italy .', 'label': 'woman'}
    ```
    """
    rng = random.Random(f"gender {seed}")
    pools = {(held_out, label): [] for held_out in (False, True) for label in ANSWERS}
    # All first sentences of the world, which has some six hundred of them
    for text in sorted({story.split("\n")[0] for story in generate_corpus(20000, seed=0)}):
        person = text.split()[1]
        pair = next((pair for pair in PEOPLE if person in pair), ANSWERS)
        if pair != ANSWERS:
            label = ANSWERS[pair.index(person)]
            pools[pair in HELD_OUT, label].append({"text": text, "label": label})
    for pool in pools.values():
        rng.shuffle(pool)
    known = [row for rows in zip(*(pools[False, label] for label in ANSWERS)) for row in rows]
    new_words = [row for rows in zip(*(pools[True, label] for label in ANSWERS)) for row in rows]
    train = min(train, len(known) * 3 // 4)
    tests = {"new texts": known[train : train + test], "new words": new_words[:test]}
    return LabelledTask("a man or a woman?", known[:train], tests, "{text}\nin the evening the")


def cloze_task(documents: Sequence[str], train: int, test: int, seed: int = 0) -> LabelledTask:
    """
    A task for any text: a passage with a gap, and which of the text's eight most frequent words was there.

    Args:
        documents (`Sequence[str]`):
            Text.
        train, test (`int`):
            Rows for tuning and for the test; fewer, in the same proportion, if the text is short. They come from
            different parts of the text.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the choice.

    Returns:
        [`LabelledTask`]: the task.

    Raises:
        `ValueError`: if the text is too short.
    """
    words = [word for document in documents for word in document.split()]
    labels = {word for word, _ in Counter(filter(str.isalpha, words)).most_common(8)}
    rows = {}
    for start in range(0, len(words) - 12, 12):
        # In the middle, so that both sides tell of it
        passage, middle = words[start : start + 12], range(4, 9)
        at = next((at for at in middle if passage[at] in labels), None)
        if at is not None:
            rows[" ".join((*passage[:at], GAP, *passage[at + 1 :]))] = passage[at]
    rows = [{"text": text, "label": label} for text, label in rows.items()]
    test = min(test, len(rows) * test // (train + test))
    rng = random.Random(f"cloze {seed}")
    known, rest = rows[: len(rows) - test], rows[len(rows) - test :]
    known = rng.sample(known, min(train, len(known)))
    return LabelledTask("the word in the gap", known, {"new texts": rest}, "{text}\n")


def labelled_task(
    rows: Sequence[Mapping], text_column: str, label_column: str, template: str, test_share: float = 0.2, seed: int = 0
) -> LabelledTask:
    """
    A task from rows with a text and a label. A text that occurs more than once is taken once, with its last label.

    Args:
        rows (`Sequence[dict]`):
            The rows.
        text_column, label_column (`str`):
            Their columns. A label may be a word or a number.
        template (`str`):
            The prompt, with `{text}` in it.
        test_share (`float`, *optional*, defaults to `0.2`):
            Share of the rows that are kept for the test.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the split.

    Returns:
        [`LabelledTask`]: the task.

    Raises:
        `ValueError`: if a row lacks its text or its label.
    """
    for column in (text_column, label_column):
        missing = sum(row.get(column) is None for row in rows)
        if missing:
            raise ValueError(
                f"{missing} of {len(rows)} rows have no {column!r}; the first has the columns {sorted(rows[0])}. Name "
                "the right ones with `text_column` and `label_column`."
            )
    chosen = [
        {"text": text, "label": label}
        for text, label in {row[text_column]: str(row[label_column]) for row in rows}.items()
    ]
    random.Random(seed).shuffle(chosen)
    test = round(test_share * len(chosen))
    return LabelledTask(f"{label_column} of {text_column}", chosen[test:], {"new texts": chosen[:test]}, template)
