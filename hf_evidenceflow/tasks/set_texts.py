"""How the problems of set tracking are written, in compact signs or in words, and the tokenizers of both."""

import functools
import re
import string
from collections.abc import Sequence

from .generated import word_level_tokenizer
from .text import MARKER


LETTERS = string.ascii_uppercase
# Common words: with the space before it, each is one token of SmolLM2's tokenizer
# fmt: off
WORD_NAMES = (
    "red", "blue", "green", "black", "white", "gold", "pink", "orange", "brown", "yellow", "purple", "silver",
    "gray", "violet", "amber", "ivory", "dog", "cat", "horse", "lion", "bear", "wolf", "fox", "bird", "fish",
    "cow", "pig", "sheep", "mouse", "rabbit", "tiger", "eagle",
)
# fmt: on

_COMPACT_PIECE = r"####|c[0-9]+|[A-Z]\??|[^A-Z]"
_WORDS_PIECE = r"####| ?[A-Za-z]+|[^A-Za-z]"


@functools.lru_cache
def cup_names(cups: int, words: bool = False) -> tuple[str, ...]:
    """The names as a completion has them: `c0`, `c1`..., or ` red`, ` blue`... with the space before the word."""
    return tuple(f" {WORD_NAMES[cup]}" if words else f"c{cup}" for cup in range(cups))


def set_texts(moves: str, asked: Sequence[str], words: bool = False) -> tuple[str, str]:
    """Question and prompt of a sequence of moves in compact writing, and of the two cups that are asked for."""
    first, second = asked
    if not words:
        question = f"{moves}:{first},{second}"
        return question, f"{question}\n"
    told = " ".join(f"Maybe do {move[0]}." if move[1:] else f"Do {move}." for move in re.findall(r"[A-Z]\??", moves))
    question = f"The ball is under the {WORD_NAMES[0]} cup. {told} Is it under the {first} or the {second} cup?"
    return question, question


def build_set_tokenizer(cups: int = 12, operations: int = 4, words: bool = False):
    """
    A tokenizer for the problems of [`generate_set_problems`] with these settings: each cup, each move (compact: with
    its mark, `B?`) and the marker `####` is one token. See [`build_word_problem_tokenizer`].
    """
    letters, names = LETTERS[:operations], cup_names(cups, words)
    if words:
        text = "The ball is under the cup. Do Maybe do Is it or?"
        told = re.findall(_WORDS_PIECE, text)
        pieces = [MARKER, *names, *(f" {letter}" for letter in letters), *told, " Maybe", " Do", " ", "\n"]
        pattern = _WORDS_PIECE
    else:
        pieces = [MARKER, *names, *letters, *(f"{letter}?" for letter in letters), *":, \n"]
        pattern = _COMPACT_PIECE
    pieces = list(dict.fromkeys(pieces))
    return word_level_tokenizer([piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces], pattern)
