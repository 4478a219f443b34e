"""Brings the ways in which models write numbers to one: ASCII digits, commas between thousands, fractions as `1/2`."""

import re
import unicodedata

from .answers import ASCII_OF


_FRACTIONS = {
    character: unicodedata.normalize("NFKC", character).replace("\u2044", "/") for character in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_CHARACTERS = (
    ASCII_OF
    | str.maketrans(_FRACTIONS)
    | str.maketrans("\u2212\u2010\u2011\u2012\u2013\ufe63\u2044\u2215\u00d7", "------//*")
)
_NUMBER = r"([+-]?[0-9][0-9,.]*)"

_GROUP = re.compile(r"(?<=[0-9])(?:[\u00a0\u2007\u2009\u202f]|\\[,;: ])(?=[0-9]{3}(?![0-9]))")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-zA-Z])")
_LATEX_COMMA = re.compile(r"\{,\}|,?\\!")
_BEFORE_FRACTION = re.compile(rf"(?<=[0-9])(?=[{''.join(_FRACTIONS)}])")
_LATEX_FRACTION = re.compile(
    rf"([0-9]?)\s?\\[dtc]?frac\s?(?:\{{\s?{_NUMBER}\s?\}}\s?\{{\s?{_NUMBER}\s?\}}|([0-9])\s?([0-9])(?![0-9]))"
)


def plain_writing(text: str) -> str:
    """
    A text with its numbers in plain writing.

    Args:
        text (`str`):
            Text of an answer, or a whole completion.

    Returns:
        `str`: the text; what is no number in one of the known writings is left as it is.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.number_writing import plain_writing

    >>> plain_writing("\u22122\\\\frac{1}{2} of 70\\u00a0000"), plain_writing("5½")
    ('-2 1/2 of 70,000', '5 1/2')
    ```
    """
    if not text.isascii():
        text = _BEFORE_FRACTION.sub(" ", text.translate(ASCII_OF)).translate(_CHARACTERS)
    if "\\" in text or "{,}" in text:
        text = _TIMES.sub("*", _LATEX_COMMA.sub(",", text))
        text = _LATEX_FRACTION.sub(_plain_fraction, text)
    return _GROUP.sub(",", text)


def _plain_fraction(found: re.Match) -> str:
    digit, numerator, divisor, short_numerator, short_divisor = found.groups()
    fraction = f"{numerator or short_numerator}/{divisor or short_divisor}"
    return f"{digit} {fraction}" if digit else fraction
