"""Draws problems until there are enough different ones, for the generators of this folder."""

from collections.abc import Callable


MAX_DRAWS_IN_VAIN = 10_000  # in a row, before the problems that the settings allow count as used up


def distinct_problems(n: int, draw: Callable[[], tuple[str, str] | None], settings: str) -> list[dict]:
    """
    Draw problems whose questions differ.

    Args:
        n (`int`):
            Number of problems.
        draw (`Callable`):
            Draws a question and its answer, or `None`.
        settings (`str`):
            What the problems are drawn with, for the error.

    Returns:
        `list[dict]`: rows with the texts `question` and `answer`, in the order in which they were drawn.

    Raises:
        `ValueError`: if there are too few different ones.
    """
    problems: dict[str, str] = {}
    in_vain = 0
    while len(problems) < n:
        if in_vain == MAX_DRAWS_IN_VAIN:
            raise ValueError(
                f"Only {len(problems)} of {n} different problems were found with {settings}. Ask for fewer, or raise "
                "one of these."
            )
        problem = draw()
        if problem is None or problem[0] in problems:
            in_vain += 1
        else:
            problems[problem[0]] = problem[1]
            in_vain = 0
    return [{"question": question, "answer": answer} for question, answer in problems.items()]
