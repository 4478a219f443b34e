"""
Reads a number out of an answer's text: exactly, without `eval`, in time linear in the text's length.

The grammar, after [`plain_writing`]:

    number   = [sign] [currency] (mixed | value ["/" value])
    mixed    = digits " " digits "/" digits          proper: `2 1/2`, also `2\\frac{1}{2}` and `2½`
    value    = decimal [exponent]
    decimal  = digits | groups of three with commas, ["." digits]
    exponent = "e" [sign] digits | "*10^" [sign] digits     at most 100
"""

import re
import unicodedata
from decimal import Context, Decimal, Inexact
from fractions import Fraction

from .text import ASCII_OF


MAX_NUMBER_LENGTH = 100  # characters; bounds the cost of exact arithmetic, and of Python's conversion of digits
MAX_EXPONENT = 100

_SIGNS = "+-"
_CURRENCIES = "$€£¥"
_OPERATORS = ("/", "^", "√", "sqrt")
_LOOK_BACK = 32

# One run takes all digits, commas and dots that stand together and is checked afterwards: no position is tried twice.
_EXPONENT = (
    r"(?:[eE]([+-]?[0-9]{1,3})(?!\.?[0-9A-Za-z])"
    r"|\s?\*\s?10\s?\^\s?(?:\{([+-]?[0-9]{1,3})\}|([+-]?[0-9]{1,3}))(?!\.?[0-9]))?"
)
_NUMBER = re.compile(rf"([0-9][0-9,.]*){_EXPONENT}(?:\s?/\s?(\.?[0-9][0-9,.]*))?")
_FORMULA = re.compile(r"\\(?:[dtc]?frac|sqrt|pi|div|pm|mp|binom|infty)(?![a-zA-Z])|[√π∞±]")
_WELL_FORMED = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_ANY_DIGIT = re.compile(r"\d")  # of any script

_FRACTIONS = {
    character: unicodedata.normalize("NFKC", character).replace("\u2044", "/") for character in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_CHARACTERS = (
    ASCII_OF
    | str.maketrans(_FRACTIONS)
    | str.maketrans("\u2212\u2010\u2011\u2012\u2013\ufe63\u2044\u2215\u00d7", "------//*")
)
_DECIMALS = r"([+-]?[0-9][0-9,.]*)"
_GROUP = re.compile(r"(?<=[0-9])(?:[\u00a0\u2007\u2009\u202f]|\\[,;: ])(?=[0-9]{3}(?![0-9]))")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-zA-Z])")
_LATEX_COMMA = re.compile(r"\{,\}|,?\\!")
_BEFORE_FRACTION = re.compile(rf"(?<=[0-9])(?=[{''.join(_FRACTIONS)}])")
_LATEX_FRACTION = re.compile(
    rf"([0-9]?)\s?\\[dtc]?frac\s?(?:\{{\s?{_DECIMALS}\s?\}}\s?\{{\s?{_DECIMALS}\s?\}}|([0-9])\s?([0-9])(?![0-9]))"
)


def plain_writing(text: str) -> str:
    """
    A text with its numbers in one writing: ASCII digits, commas between thousands, fractions as `1/2`. What is no
    number in one of the known writings is left as it is.
    """
    if not text.isascii():
        text = _BEFORE_FRACTION.sub(" ", text.translate(ASCII_OF)).translate(_CHARACTERS)
    if "\\" in text or "{,}" in text:
        text = _TIMES.sub("*", _LATEX_COMMA.sub(",", text))
        text = _LATEX_FRACTION.sub(_plain_fraction, text)
    return _GROUP.sub(",", text)


def parse_number(text: str) -> Fraction | None:
    """
    The one number that a text holds.

    Read are signs, thousands separators (`70,000`, `70\\,000`, with a no-break or thin space), decimals (`.5`,
    `18.00`), a trailing dot (`18.`), exponents (`1.5e3`, `1.5 \\times 10^3`), fractions (`1/2`, `\\frac{1}{2}`, `½`),
    mixed ones (`2 1/2`), and full-width digits. Currency signs, `%` and the words around the number are units and do
    not change it. Not read, because they name no single number: a second number anywhere in the text (`18 or 20`),
    groups that are no thousands (`1,2`), a formula (`x - 5`, `\\sqrt{5}`, `\\frac{x}{2}`), a division by zero, and a
    number of more than 100 characters or an exponent above 100.

    Returns:
        `Fraction | None`: the exact number; `None` if there is none, or not exactly one, or `text` is no string.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks import parse_number

    >>> parse_number("$70,000 in total."), parse_number("1/2"), parse_number("18 or 20")
    (Fraction(70000, 1), Fraction(1, 2), None)
    ```
    """
    text = plain_writing(text) if isinstance(text, str) else ""
    found = _NUMBER.search(text)
    if found is None or _FORMULA.search(text):
        return None
    end = found.end()
    following = _NUMBER.search(text, end)
    mixed = None if following is None else _mixed(text, found, following)
    if mixed is not None:
        end = following.end()
    if text[end : end + 1].isnumeric():  # "5²" is another number than 5
        return None
    if _ANY_DIGIT.search(text, 0, found.start()) or _ANY_DIGIT.search(text, end):
        return None
    return mixed if mixed is not None else _value(text, found, unsigned_after_operator=False)


def last_number(text: str) -> Fraction | None:
    """
    The last number of a text, for instance a whole completion, whatever stands before it; in `3 - 5` that is 5. `None`
    if there is none, if the last one cannot be read (`1/0`, `1,2`), or for anything but a string.
    """
    found = before = None
    text = plain_writing(text) if isinstance(text, str) else ""
    for match in _NUMBER.finditer(text):
        found, before = match, found
    if found is None:
        return None
    mixed = None if before is None else _mixed(text, before, found)
    return mixed if mixed is not None else _value(text, found, unsigned_after_operator=True)


def format_number(number: Fraction) -> str:
    """
    A number in plain writing, the same for equal numbers: `70000`, `-0.5`, and `1/3` where the decimals do not end; no
    commas, exponent or trailing zeros.
    """
    context = Context(prec=10 * MAX_NUMBER_LENGTH, traps=[Inexact])
    try:
        quotient = context.divide(Decimal(number.numerator), Decimal(number.denominator))
    except Inexact:
        return str(number)
    return format(quotient.normalize(context), "f")


def _mixed(text: str, whole: re.Match, part: re.Match) -> Fraction | None:
    """The value of two matches that are a whole number and a proper fraction: `2 1/2`."""
    numerator, divisor = part[1], part[5]
    if divisor is None or not (whole[0] + numerator + divisor).isdigit() or part[0] != f"{numerator}/{divisor}":
        return None
    if not text[whole.end() : part.start()].isspace() or part.start() - whole.end() > 1:
        return None
    value, fraction = _value(text, whole, unsigned_after_operator=False), _value(text, part, False)
    if value is None or fraction is None or fraction >= 1:
        return None
    return value - fraction if value < 0 else value + fraction


def _value(text: str, found: re.Match, unsigned_after_operator: bool) -> Fraction | None:
    """The number of a match of `_NUMBER`, with the leading dot and the sign that stand before the match."""
    before = text[max(0, found.start() - _LOOK_BACK) : found.start()]
    digits, *exponents, divisor = found.groups()
    if before.endswith(".") and not (before[-2:-1].isalnum() or before[-2:-1] == "."):
        before, digits = before[:-1], "." + digits
    sign = _sign(before)
    if sign is None and unsigned_after_operator:
        sign = 1
    value = None if sign is None else _decimal(digits)
    exponent = int(next(filter(None, exponents), 0))
    if value is None or abs(exponent) > MAX_EXPONENT:
        return None
    if exponent:
        value *= Fraction(10) ** exponent
    if divisor is not None:
        denominator = _decimal(divisor)
        if not denominator:
            return None
        value /= denominator
    return -value if sign < 0 else value


def _decimal(run: str) -> Fraction | None:
    """The value of digits with thousands separators and a decimal point."""
    run = run.rstrip(".,")
    if len(run) > MAX_NUMBER_LENGTH or not _WELL_FORMED.fullmatch(run):
        return None
    return Fraction(run.replace(",", ""))


def _sign(before: str) -> int | None:
    """1 or -1 from what stands before a number; `None` if that is an operator between terms."""
    head = before.rstrip(_CURRENCIES + " \t\n\r\\({[")
    if not head.endswith(tuple(_SIGNS)):
        return None if head.endswith(_OPERATORS) else 1
    left = head[:-1]
    detached = any(char.isspace() for char in before[len(head) :])
    if detached:  # "- 5" is a sign at the start or after "=" or ":", else a minus between two terms or a dash
        is_operator = left.strip() and not left.rstrip().endswith(("=", ":"))
    else:  # "-5" is a sign, but not in "18-5" or "(a)-5"
        is_operator = left[-1:].isalnum() or left.endswith((")", "]", "}", "%", *_SIGNS))
    if is_operator:
        return None
    return -1 if head[-1] == "-" else 1


def _plain_fraction(found: re.Match) -> str:
    digit, numerator, divisor, short_numerator, short_divisor = found.groups()
    fraction = f"{numerator or short_numerator}/{divisor or short_divisor}"
    return f"{digit} {fraction}" if digit else fraction
