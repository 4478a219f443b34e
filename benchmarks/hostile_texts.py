"""Completions that a model could write to break a grader, drawn by seed; for `hostile_completions.py`."""

import random
import sys


LONG = 100_000  # characters
MARKER = "####"

LATEX_BOMBS = [
    "\\binom{685715878}{962248}",
    "\\sin(1000)^{1268}",
    "\\sum_{n=1}^{100} n^{6274}",
    "\\int_0^{100} x^{999} \\sin(x)^{99} dx",
    "\\prod_{n=1}^{9999} n^{n}",
    "9^{9^{9^9}}",
    "9^9^9^9",
    "(1+x)^{9999}",
    "9999!",
    "\\sqrt{2}^{9999}",
    "\\frac{9999!}{7}",
    "2^{9999}-1",
    "\\log(\\log(9999!))",
    "\\lim_{x \\to 0} \\frac{\\sin(x^{99})}{x}",
    "x^{1000}+y^{1000}",
    "\\begin{pmatrix}" + "1&2\\\\" * 30 + "\\end{pmatrix}",
]
NUMBERS = [
    "1e999999",
    "9" * 99,
    "1/0",
    "-0",
    "1,2,3",
    ".",
    "1.2.3",
    "½" * 9,
    "٣",
    "1e-100",
    "\uff11\uff18",
    "0/0",
    "²",
]
TAGS = ["<think>", "</think>", "<think><think>", "</think></think>", "<think", "<|im_end|>", "\\boxed{", "}", "{", "$"]
REGEX_BOMBS = [
    *("1,", "1.", "1/", "1 ", "1 1/", "1e", "-", "- ", "$", "the ", "answer is ", "A. ", "B - ", "a", "x=", "####"),
    *("#", "#### ", "#### 1\n", "#### Step 1\n", "<think>", "</think>", "\\boxed{", "\\frac{1", "\\frac{1}{2}", "\\("),
    *("\\,", "{,}", "½", "1½", "\u00a0", "1\u00a0000", "\n", " ", "\\text{", "**", "`", "^9", "9!", "((", "\\boxed"),
    *("*10^", "1*10^1", "\ud800", "\x00", "１", "|=", "\\left(", "${", "$a$", "and B ", ") B"),
]
RIGHT = ["18", "$18", "\\boxed{18}", "B", "(B)", "Paris", "\\frac{36}{2}"]


def draw(rng: random.Random) -> str | list:
    """One completion: a text, or chat messages, some of them broken."""
    text = "".join(rng.choice(_PIECES)(rng) for _ in range(rng.randint(1, 6)))
    if rng.random() < 0.7:  # where the graders look
        text = f"{text}{MARKER} {rng.choice(_PIECES)(rng)}"
    if rng.random() < 0.1:
        return rng.choice(
            [
                [{"role": "assistant", "content": text}],
                [{"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "image"}, None]}],
                [{"role": "tool", "content": text}, {"content": text}, None, 5],
                [text, [text]],
            ]
        )
    return text


def _unicode(rng):
    # Surrogates and NUL too
    return "".join(
        chr(rng.randrange(rng.choice([0x80, 0x3000, sys.maxunicode + 1]))) for _ in range(rng.randint(1, 30))
    )


def _bytes(rng):
    encoding, errors = rng.choice([("utf-8", "replace"), ("utf-8", "surrogateescape"), ("latin-1", "strict")])
    encoding, errors = rng.choice([(encoding, errors), ("utf-16", "replace"), ("shift_jis", "replace")])
    return rng.randbytes(rng.randint(1, 60)).decode(encoding, errors)


def _bomb(rng):
    piece = rng.choice(REGEX_BOMBS)
    length = LONG if rng.random() < 0.001 else rng.randint(1, 300)
    return piece * max(1, length // len(piece))


def _digits(rng):
    length = LONG if rng.random() < 0.001 else rng.randint(1, 200)
    return rng.choice("19") * length


def _mixture(rng):
    return "".join(rng.choice(rng.choice([TAGS, NUMBERS, REGEX_BOMBS, RIGHT])) for _ in range(rng.randint(1, 12)))


_PIECES = [
    *(_unicode, _bytes, _bomb, _bomb, _digits, _mixture, _mixture),
    lambda rng: rng.choice(NUMBERS),
    lambda rng: rng.choice(LATEX_BOMBS),
    lambda rng: rng.choice(RIGHT),
    lambda rng: "{" * rng.randint(1, 50) + "1" + "}" * rng.randint(1, 50),
    lambda rng: " ".join(rng.choice(RIGHT) for _ in range(rng.randint(1, 4))) + rng.choice(["\n", "", " or "]),
]
