"""
Makes problems whose intermediate state is a set: under which cups a ball can be, after moves of which some are
optional.

In the manner of CoT2 and of reasoning by superposition (Gozeten et al. 2025, arXiv 2505.23648; Zhu et al. 2025, arXiv
2505.12514). A letter is a fixed permutation of the cups, and the ball begins under the first one. A move marked `?`
may have been done or not, so that after move t the ball can be under up to 2^(optional moves so far) cups: thought t
is that set, which one token cannot say. The permutations do not commute, so that the moves cannot be taken all at
once. Of the two cups that a question names, exactly one can hold the ball.
"""

import functools
import hashlib
import random
import re
from collections.abc import Sequence

from .generated import distinct_problems, name_reward, spoil
from .set_texts import LETTERS, WORD_NAMES, build_set_tokenizer, cup_names, set_texts


__all__ = [
    "build_set_tokenizer",
    "cup_permutations",
    "generate_set_problems",
    "held_out_part",
    "make_hasty",
    "possible_cups",
    "set_runs",
    "set_tracking_reward",
    "split_set_problems",
]

_MOVE = re.compile(r"([A-Z])(\??)")
_BUCKETS = {0: "test", 1: "validation"}  # of 20: a tenth is held out
_MAX_DRAWS = 10_000

set_tracking_reward = name_reward("set_tracking_reward")
"""[`Reward`] for the right cup after exactly one marker `####`."""


def generate_set_problems(
    n: int,
    seed: int = 0,
    cups: int = 12,
    moves: int = 8,
    optional: int = 3,
    operations: int = 4,
    rule_seed: int = 0,
    words: bool = False,
) -> list[dict]:
    """
    Different problems of set tracking, from all move sequences; [`split_set_problems`] holds some of them out.

    Args:
        n (`int`):
            Number of problems.
        seed (`int`, *optional*, defaults to `0`):
            The same seed gives the same problems, and the first of a longer list.
        cups (`int`, *optional*, defaults to `12`):
            Number of cups, at least 3; with `words` at most 32.
        moves (`int`, *optional*, defaults to `8`):
            Moves of a problem, and so its thoughts.
        optional (`int`, *optional*, defaults to `3`):
            How many of the moves, at random places, are marked `?`: the last set has up to `2 ** optional` cups.
        operations (`int`, *optional*, defaults to `4`):
            Number of permutations, named by the first letters.
        rule_seed (`int`, *optional*, defaults to `0`):
            Which permutations the letters are, see [`cup_permutations`].
        words (`bool`, *optional*, defaults to `False`):
            Whether to ask in plain English, with a color or an animal for each cup. The names with the space before
            them are one token each in [`build_set_tokenizer`], and in usual byte-level BPE.

    Returns:
        `list[dict]`: rows with `question`, such as `BA?DC?:c3,c7`; `prompt`, the question with what leads over to a
        completion; `answer`, the name of a cup; `steps`, the cup after each move of one run that ends in the answer,
        drawn uniformly over the ways to do or leave the optional moves; `thought_targets`, per move `{cup: weight}`,
        uniform over the cups that can hold the ball (not weighted by the number of runs to them); `candidates`, the
        two cups in the order of the text; `moves`, the compact writing; and `settings`, what cups and letters are.
        Steps are joined without any separator.

    Raises:
        `ValueError`: if an argument is out of its range, or if the settings do not allow so many different problems.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks import generate_set_problems

    >>> row = generate_set_problems(1, moves=2, optional=1)[0]
    >>> row["question"], row["thought_targets"], row["steps"], row["answer"]
    ```
    """
    return _generate(n, random.Random(seed), None, cups, moves, optional, operations, rule_seed, words)


def split_set_problems(train: int, test: int, validation: int = 0, seed: int = 0, **settings) -> dict[str, list[dict]]:
    """
    Problems under `"train"`, `"test"` and `"validation"` that share no move sequence: a twentieth of all sequences is
    for test problems only and one for validation, by a hash that does not depend on seeds or process. No part depends
    on the size of another. `settings` are further arguments of [`generate_set_problems`].
    """
    sizes = {"train": train, "test": test, "validation": validation}
    settings = _DEFAULTS | settings
    return {part: _generate(size, random.Random(f"{seed} {part}"), part, **settings) for part, size in sizes.items()}


def held_out_part(moves: str) -> str:
    """`"test"`, `"validation"` or `"train"`: which split may ask a sequence of moves, in compact writing (`BA?D`)."""
    digest = hashlib.sha256(moves.encode()).digest()
    return _BUCKETS.get(int.from_bytes(digest[:8], "big") % 20, "train")


@functools.lru_cache
def cup_permutations(cups: int, operations: int, rule_seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """
    The permutation of each letter: a ball under cup `i` goes under cup `permutation[i]`. No two commute, none is the
    identity, and together they bring the ball under each cup. A `ValueError` if no such ones are found.
    """
    rng = random.Random(f"cups {rule_seed}")
    chosen: list[tuple[int, ...]] = []
    for _ in range(_MAX_DRAWS):
        drawn = tuple(rng.sample(range(cups), cups))
        if drawn != tuple(range(cups)) and not any(_commute(drawn, other) for other in chosen):
            chosen.append(drawn)
        if len(chosen) == operations:
            if len(_reached(chosen)) == cups:
                return tuple(chosen)
            chosen = []
    raise ValueError(
        f"No {operations} permutations of {cups} cups were found that do not commute. Use more `cups`, or fewer "
        "`operations`."
    )


def possible_cups(moves: str, permutations: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """
    The oracle: the cups that can hold the ball after each of the moves, in compact writing, when it begins under the
    first.
    """
    sets, now = [], frozenset({0})
    for letter, mark in _MOVE.findall(moves):
        moved = frozenset(permutations[LETTERS.index(letter)][cup] for cup in now)
        now = moved | now if mark else moved
        sets.append(now)
    return sets


def set_runs(row: dict, n: int, seed: int = 0) -> list[list[str]]:
    """
    Random legal runs of a row: in each, the cup after every move, where each optional move was done with probability
    1/2. Their last cup need not be the answer. The same row and seed give the same runs; other rows draw on their own.
    """
    rng = random.Random(f"{seed} {row['question']}")
    return [_named(_run(row["moves"], _permutations(row), rng), row) for _ in range(n)]


def make_hasty(problems: Sequence[dict], share: float = 0.5, seed: int = 0) -> list[dict]:
    """
    New rows of the same problems, of which a `share` has a random legal run as its `steps`, and as its `answer` the
    cup in which that ended, or one of the two candidates by chance if it ended in neither. `thought_targets` stay.

    A `ValueError` if `share` is not in [0, 1].
    """
    return spoil(problems, share, seed, _hasty)


def _hasty(problem: dict, rng: random.Random) -> dict:
    steps = _named(_run(problem["moves"], _permutations(problem), rng), problem)
    last, candidates = steps[-1].strip(), problem["candidates"]
    return {"steps": steps, "answer": last if last in candidates else rng.choice(candidates)}


def _generate(
    n: int,
    rng: random.Random,
    part: str | None,
    cups: int,
    moves: int,
    optional: int,
    operations: int,
    rule_seed: int,
    words: bool,
) -> list[dict]:
    _check(n, cups, moves, optional, operations, words)
    permutations = cup_permutations(cups, operations, rule_seed)
    settings = {"cups": cups, "operations": operations, "rule_seed": rule_seed, "words": words}
    shown = f"`cups={cups}`, `moves={moves}`, `optional={optional}` and `operations={operations}`"
    return distinct_problems(n, lambda: _draw(rng, part, moves, optional, permutations, settings), shown)


_DEFAULTS = {"cups": 12, "moves": 8, "optional": 3, "operations": 4, "rule_seed": 0, "words": False}


def _check(n: int, cups: int, moves: int, optional: int, operations: int, words: bool) -> None:
    ranges = {
        "n": (n, 0, n),
        "cups": (cups, 3, len(WORD_NAMES) if words else cups),
        "moves": (moves, 1, moves),
        "optional": (optional, 0, moves),
        "operations": (operations, 2, len(LETTERS)),
    }
    for name, (value, lowest, highest) in ranges.items():
        if value < lowest:
            raise ValueError(f"`{name}` must be at least {lowest}, got {value}.")
        if value > highest:
            raise ValueError(f"`{name}` must be at most {highest}, got {value}.")


def _draw(
    rng: random.Random,
    part: str | None,
    moves: int,
    optional: int,
    permutations: Sequence[Sequence[int]],
    settings: dict,
) -> dict | None:
    """A row; `None` if the sequence belongs to another part, or if the ball can be anywhere."""
    marked = set(rng.sample(range(moves), optional))
    sequence = "".join(LETTERS[rng.randrange(len(permutations))] + "?" * (place in marked) for place in range(moves))
    sets = possible_cups(sequence, permutations)
    impossible = sorted(set(range(settings["cups"])) - sets[-1])
    if part not in (None, held_out_part(sequence)) or not impossible:
        return None
    right, wrong = rng.choice(sorted(sets[-1])), rng.choice(impossible)
    asked = rng.sample((right, wrong), 2)
    names = cup_names(settings["cups"], settings["words"])
    question, prompt = set_texts(sequence, [names[cup].strip() for cup in asked], settings["words"])
    return {
        "question": question,
        "prompt": prompt,
        "steps": [names[cup] for cup in _run_to(right, sequence, permutations, rng)],
        "answer": names[right].strip(),
        "thought_targets": [{names[cup]: 1 / len(cups) for cup in sorted(cups)} for cups in sets],
        "candidates": [names[cup].strip() for cup in asked],
        "moves": sequence,
        "settings": dict(settings),
    }


def _run(moves: str, permutations: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    run, cup = [], 0
    for letter, mark in _MOVE.findall(moves):
        if not mark or rng.random() < 0.5:
            cup = permutations[LETTERS.index(letter)][cup]
        run.append(cup)
    return run


def _run_to(end: int, moves: str, permutations: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
    """One of the runs that end in a cup; all ways to do or leave the optional moves are as likely."""
    while True:
        run = _run(moves, permutations, rng)
        if run[-1] == end:
            return run


def _permutations(row: dict) -> tuple[tuple[int, ...], ...]:
    settings = row["settings"]
    return cup_permutations(settings["cups"], settings["operations"], settings["rule_seed"])


def _named(run: Sequence[int], row: dict) -> list[str]:
    names = cup_names(row["settings"]["cups"], row["settings"]["words"])
    return [names[cup] for cup in run]


def _commute(first: Sequence[int], second: Sequence[int]) -> bool:
    return all(first[second[cup]] == second[first[cup]] for cup in range(len(first)))


def _reached(permutations: Sequence[Sequence[int]]) -> set[int]:
    reached, todo = {0}, [0]
    while todo:
        cup = todo.pop()
        new = {permutation[cup] for permutation in permutations} - reached
        reached |= new
        todo += new
    return reached
