"""Reads a number out of an answer's text: exactly, without `eval`, in time linear in the text's length."""

import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction


MAX_NUMBER_LENGTH = 100  # characters; bounds the cost of exact arithmetic, and of Python's conversion of digits

_MINUS = "-\u2212\u2013"
_SIGNS = "+" + _MINUS
_CURRENCIES = "$€£¥"
_OPERATORS = ("/", "^", "√", "sqrt")
_LOOK_BACK = 32

# One run takes all digits, commas and dots that stand together and is checked afterwards: no position is tried twice.
_NUMBER = re.compile(r"([0-9][0-9,.]*)(?:\s?/\s?(\.?[0-9][0-9,.]*))?")
_WELL_FORMED = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?")
_ANY_DIGIT = re.compile(r"\d")  # of any script


def parse_number(text: str) -> Fraction | None:
    """
    The one number that a text holds.

    Read are signs (also U+2212), thousands separators (`70,000`), decimals (`.5`, `18.00`), a trailing dot (`18.`) and
    simple fractions (`1/2`). Currency signs, `%` and the words around the number are units and do not change it. Not
    read, because they name no single number: a second number anywhere in the text (`18 or 20`, `2 1/2`), groups that
    are no thousands (`1,2`), a number after an operator (`x - 5`, `sqrt(5)`), a division by zero, and a number of more
    than 100 characters.

    Args:
        text (`str`):
            Text of the answer. Anything but a string has no number.

    Returns:
        `Fraction | None`: the exact number; `None` if there is none, or not exactly one.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import parse_number

    >>> parse_number("$70,000 in total."), parse_number("1/2"), parse_number("18 or 20")
    (Fraction(70000, 1), Fraction(1, 2), None)
    ```
    """
    found = _NUMBER.search(text) if isinstance(text, str) else None
    if found is None or text[found.end() : found.end() + 1].isnumeric():  # "5²" and "5½" are other numbers than 5
        return None
    if _ANY_DIGIT.search(text, 0, found.start()) or _ANY_DIGIT.search(text, found.end()):
        return None
    return _value(text, found, unsigned_after_operator=False)


def last_number(text: str) -> Fraction | None:
    """
    The last number of a text, whatever stands before it; in `3 - 5` that is 5.

    Args:
        text (`str`):
            Text to read, for example a whole completion. Anything but a string has no number.

    Returns:
        `Fraction | None`: the exact number; `None` if there is none, or if the last one cannot be read (`1/0`, `1,2`).

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import last_number

    >>> last_number("3 boxes of 4 make 12 pens.")
    Fraction(12, 1)
    ```
    """
    found = None
    if isinstance(text, str):
        for found in _NUMBER.finditer(text):  # noqa: B007 (the last match is the answer)
            pass
    return None if found is None else _value(text, found, unsigned_after_operator=True)


def format_number(number: Fraction) -> str:
    """
    A number in plain writing, the same for equal numbers: `70000`, `-0.5`, and `1/3` where the decimals do not end.

    Args:
        number (`Fraction`):
            Number to write.

    Returns:
        `str`: the number without commas, exponent or trailing zeros.

    Example:

    ```python
    >>> from fractions import Fraction
    >>> from hf_evidenceflow.rewards.numbers import format_number

    >>> format_number(Fraction(1, 2)), format_number(Fraction(1, 3))
    ('0.5', '1/3')
    ```
    """
    context = Context(prec=10 * MAX_NUMBER_LENGTH, traps=[Inexact])
    try:
        quotient = context.divide(Decimal(number.numerator), Decimal(number.denominator))
    except Inexact:
        return str(number)
    return format(quotient.normalize(context), "f")


def _value(text: str, found: re.Match, unsigned_after_operator: bool) -> Fraction | None:
    """The number of a match of `_NUMBER`, with the leading dot and the sign that stand before the match."""
    before = text[max(0, found.start() - _LOOK_BACK) : found.start()]
    digits, divisor = found.groups()
    if before.endswith(".") and not (before[-2:-1].isalnum() or before[-2:-1] == "."):
        before, digits = before[:-1], "." + digits
    sign = _sign(before)
    if sign is None and unsigned_after_operator:
        sign = 1
    numerator = _decimal(digits)
    denominator = Fraction(1) if divisor is None else _decimal(divisor)
    if sign is None or numerator is None or not denominator:
        return None
    return sign * numerator / denominator


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
    return -1 if head[-1] in _MINUS else 1
