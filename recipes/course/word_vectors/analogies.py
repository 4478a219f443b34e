"""Analogies: a is to b as c is to d, answered by the vectors, and counted by relation.

3CosAdd (Mikolov, Yih and Zweig 2013; named so by Levy and Goldberg 2014): the answer is the word whose vector has the
largest cosine with b - a + c, each taken at length 1. The three words of the question are no answers, as is usual;
without that rule the answer is often c itself.
"""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hf_evidenceflow.evaluation.statistics import Interval, proportion_interval
from hf_evidenceflow.files import read_text


ALL_RELATIONS = "all"


class AnalogyScore(NamedTuple):
    """
    How a relation's questions were answered.

    Args:
        right (`int`):
            Right answers.
        asked (`int`):
            Questions whose four words all have vectors.
        left_out (`int`):
            Other questions.
        nearest (`int`):
            Questions that the word nearest to c answers too, without a look at a and b.
    """

    right: int
    asked: int
    left_out: int
    nearest: int

    def interval(self) -> Interval | None:
        """Accuracy with Wilson's 95 % interval; `None` if nothing was asked."""
        return proportion_interval(self.right, self.asked) if self.asked else None


def score_analogies(vectors, questions: Iterable[Sequence[str]]) -> dict[str, AnalogyScore]:
    """
    Ask all questions and count the right answers.

    Args:
        vectors (`gensim.models.KeyedVectors`):
            Vectors by word.
        questions (`Iterable[Sequence[str]]`):
            Relation, a, b, c and the right answer d, as from [`~recipes.course.shared.corpus.analogies`].

    Returns:
        `dict[str, AnalogyScore]`: by relation in the order of the questions, and `"all"` at the end.
    """
    counts: dict[str, list[int]] = {}
    nearest: dict[str, list[str]] = {}
    for relation, *words in questions:
        count = counts.setdefault(relation, [0, 0, 0, 0])
        if any(word not in vectors for word in words):
            count[2] += 1
            continue
        a, b, c, d = words
        ((answer, _),) = vectors.most_similar(positive=[b, c], negative=[a], topn=1)
        count[0] += answer == d
        count[1] += 1
        if c not in nearest:
            nearest[c] = [word for word, _ in vectors.most_similar(c, topn=3)]
        count[3] += next((word for word in nearest[c] if word not in (a, b)), None) == d
    scores = {relation: AnalogyScore(*count) for relation, count in counts.items()}
    scores[ALL_RELATIONS] = AnalogyScore(*(sum(score[part] for score in scores.values()) for part in range(4)))
    return scores


def read_questions(path: str | os.PathLike) -> list[tuple[str, str, str, str, str]]:
    """
    Read a file of analogies in the format of word2vec's `questions-words.txt`: a line `: relation`, then lines of
    four words.

    Args:
        path (`str` or `os.PathLike`):
            The file.

    Returns:
        `list[tuple[str, str, str, str, str]]`: relation and four words, in lower case.

    Raises:
        `ValueError`: if a line has another form.
    """
    relation, questions = "questions", []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith(":"):
            relation = line[1:].strip()
        elif words := line.lower().split():
            if len(words) != 4:
                raise ValueError(
                    f"Line {number} of {path} must have four words or be `: relation`, got {line!r}. Correct the line."
                )
            questions.append((relation, *words))
    return questions


def neighbour_rows(vectors, words: Sequence[str], topn: int = 4) -> list[list[str]]:
    """
    The nearest words by cosine.

    Args:
        vectors (`gensim.models.KeyedVectors`):
            Vectors by word.
        words (`Sequence[str]`):
            Words to ask for.
        topn (`int`, *optional*, defaults to `4`):
            Neighbours of each.

    Returns:
        `list[list[str]]`: for each word, its neighbours from the nearest on.
    """
    return [[neighbour for neighbour, _ in vectors.most_similar(word, topn=topn)] for word in words]
