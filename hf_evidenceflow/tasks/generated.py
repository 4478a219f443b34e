"""What the self-made problems share: all differ, some solutions are spoiled on demand, each word is a token."""

import random
from collections.abc import Callable, Sequence

from .grading import GoldRule, Reward, gold_text
from .text import after_only_marker, completion_text


MAX_DRAWS_IN_VAIN = 10_000  # one after the other, before the problems that the settings allow count as used up
PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "<eos>", "<unk>"


def distinct_problems(n: int, draw: Callable[[], dict | None], settings: str) -> list[dict]:
    """
    Rows with `n` different questions, in the order in which they were drawn; `draw` may also give `None`. A
    `ValueError` that names the `settings` if there are too few different ones.
    """
    problems: dict[str, dict] = {}
    in_vain = 0
    while len(problems) < n:
        if in_vain == MAX_DRAWS_IN_VAIN:
            raise ValueError(
                f"Only {len(problems)} of {n} different problems were found with {settings}. Ask for fewer, or raise "
                "one of these."
            )
        problem = draw()
        if problem is None or problem["question"] in problems:
            in_vain += 1
        else:
            problems[problem["question"]] = problem
            in_vain = 0
    return list(problems.values())


def hold_out(problems: list[dict], test: int) -> dict[str, list[dict]]:
    """The first problems under `"test"`, so that they do not depend on how many are left under `"train"`."""
    return {"train": problems[test:], "test": problems[:test]}


def spoil(
    problems: Sequence[dict], share: float, seed: int, spoiled: Callable[[dict, random.Random], dict]
) -> list[dict]:
    """New rows, of which a `share` in [0, 1] has `spoiled` columns; a `ValueError` if `share` is no probability."""
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share}.")
    rng = random.Random(seed)
    return [{**problem, **spoiled(problem, rng)} if rng.random() < share else dict(problem) for problem in problems]


def word_level_tokenizer(pieces: Sequence[str], pattern: str):
    """
    A tokenizer with one token per piece. Every token decodes to its own text, spaces included.

    Args:
        pieces (`Sequence[str]`):
            The vocabulary in the byte-level alphabet, where a space is `Ġ` and a line break `Ċ`.
        pattern (`str`):
            Regular expression of one piece.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: with a pad and an end-of-text token; it adds neither on its own and
        pads on the left.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate((PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def name_reward(name: str) -> Reward:
    """[`Reward`] for the right name, a single word, after exactly one marker `####`."""
    return Reward(name, GoldRule(_gold_name, "one word, or a text that ends in `#### <word>`"), _name_after_marker)


def _gold_name(gold) -> str | None:
    return _only_word(gold_text(gold) or "")


def _name_after_marker(text: str) -> str | None:
    return _only_word(after_only_marker(completion_text(text)) or "")


def _only_word(text: str) -> str | None:
    words = text.split()
    return words[0] if len(words) == 1 else None
