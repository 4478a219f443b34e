"""Compares expressions by the optional package math-verify: safe in threads and on whatever a model writes."""

import importlib.util
import re

from .verifier import equal


MAX_EXPRESSION_LENGTH = 300  # characters
MAX_DEPTH = 10  # brackets in brackets; math-verify's time grows steeply with them

_OPEN, _CLOSE = "({[", ")}]"
# Exponents and factorials of five and more digits, towers of powers, factorials of factorials
_EXPLOSIVE = re.compile(
    r"(?:\^|\*\*)[\s({-]*[0-9]{5,}"
    r"|(?:\^|\*\*)\s*(?:[0-9]+|[a-z])?\s*(?:\^|\*\*|!)"
    r"|(?:\^|\*\*)\s*[({][^)}]*(?:\^|\*\*|!)"
    r"|[0-9]{5,}[\s)}]*!"
    r"|![\s)}]*!",
    re.IGNORECASE,
)


def require_math_verify() -> None:
    """Raises an `ImportError` if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            "Grading with math-verify needs the optional package math-verify, which is not installed. Install it with "
            "`pip install hf-evidenceflow[math]`, or choose another grader."
        )


def readable_expression(text: str) -> str | None:
    """
    An expression in LaTeX or plain writing that is safe to give to math-verify (U+2212 becomes a minus sign); `None`
    if it is empty, longer than 300 characters, deeper than 10 brackets, has unbalanced braces, or holds a power of a
    power, an exponent or a factorial too large to compute.
    """
    if len(text) > MAX_EXPRESSION_LENGTH:
        return None
    text = text.replace("\u2212", "-").strip()
    depth = braces = 0
    for char in text:
        depth += (char in _OPEN) - (char in _CLOSE)
        braces += (char == "{") - (char == "}")
        if braces < 0 or depth > MAX_DEPTH:
            return None
    return text if text and braces == 0 and not _EXPLOSIVE.search(text) else None


def equal_expressions(gold: str, answer: str) -> bool | None:
    """
    Whether an answer, checked by [`readable_expression`], equals the gold by math-verify's reading of both, in a
    process with limits of CPU time and memory. `False` too for what math-verify cannot read; `None` if it went over
    the limits.
    """
    require_math_verify()
    return equal(gold, answer)
