"""Expressions that are safe to give to math-verify."""

import pytest

from hf_evidenceflow.tasks.math_verification import MAX_DEPTH, MAX_EXPRESSION_LENGTH, readable_expression


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9}}",
        "9^9^9",
        "2**2**99",
        "9^{99999}",
        "9^{-99999}",
        "10^{x^{y}}",
        "99999!",
        "9!!",
        "(9!)!",
        "2^{9!}",
        "2^9!",
        "9^{2\\cdot 9^9}",
        "",
        "{",
        "}{",
    ],
)
def test_expressions_that_could_compute_forever_are_unreadable(text):
    assert readable_expression(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "2^{2005}",
        "x^{2}+y^{2}",
        "10!",
        "x^2y^2",
        "(x^2)^3",
        "x^{a+1}y^{2}",
        "e^{-x}+x^2",
        "(x^2)(y^3)",
        "\\frac{1}{x^{2}}",
        "2^n",
    ],
)
def test_usual_powers_and_factorials_are_readable(text):
    assert readable_expression(text) == text


def test_expression_at_the_limits_is_readable_and_beyond_them_not():
    deep = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert readable_expression(deep) and readable_expression("1" * MAX_EXPRESSION_LENGTH)
    assert readable_expression(f"({deep})") is None and readable_expression("1" * (MAX_EXPRESSION_LENGTH + 1)) is None
