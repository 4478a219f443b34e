"""MATH: loading, boxes, and grading by math-verify."""

import sys
import threading

import pytest
from task_rows import MATH

from hf_evidenceflow.tasks import MATH_SUBJECTS, extract_math_answer, grade_math, load_math, math_reward
from hf_evidenceflow.tasks.math import MAX_ANSWER_LENGTH, last_boxed


def test_math_row_without_a_box_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match=r"Row 0 has no answer to grade by: its `solution` has no closed \\boxed{}"):
        load_math(str(write_jsonl("train.jsonl", [{**MATH, "solution": "So $x=1$."}])))


def test_math_joins_its_seven_subjects(write_jsonl, tmp_path):
    for subject in MATH_SUBJECTS:
        write_jsonl(f"math/{subject}/train.jsonl", [{**MATH, "problem": subject}])
    assert load_math(str(tmp_path / "math"))["question"] == list(MATH_SUBJECTS) and len(MATH_SUBJECTS) == 7


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\\frac{1}{2}", "\\frac12"),
        ("0.5", "\\frac{1}{2}"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\(\\frac{1}{2}\\)", "\\frac{1}{2}"),
        ("\\[\\frac{1}{2}\\]", "\\frac{1}{2}"),
        ("The answer is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("1+x^2", "x^2 + 1"),
        ("\\sqrt{32}", "4\\sqrt{2}"),
        ("$70,000", "70000"),
        ("\u22125", "-5"),
        ("18.", "18"),
        ("Evelyn", "\\text{Evelyn}"),
        ("(1, 2)", "(1,2)"),
        ("7", 7),
    ],
)
def test_equal_expressions_are_right(answer, gold):
    assert grade_math(f"#### {answer}", gold) == 1.0


@pytest.mark.parametrize(
    "answer", ["6", "5 or 6", "$5$ or 6", "$5 or $6", "\\boxed{5} or 6", "\\boxed{6}\\boxed{5}", "5} \\boxed{5", "5x"]
)
def test_other_expressions_are_wrong(answer):
    assert grade_math(f"#### {answer}", "5") == 0.0


def test_gold_of_math_may_be_the_whole_solution():
    assert grade_math("#### 2", "We get $1 = \\boxed{1}$, so $x = \\boxed{2}$.") == 1.0


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a \\boxed{\\frac{1}{2}} b", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{2}", "2"),
        ("$\\boxed 7$.", "7"),
        ("\\boxed{", None),
        ("\\boxed", None),
        ("none", None),
    ],
)
def test_last_box_is_found_with_its_nested_braces(text, content):
    assert last_boxed(text) == content


def test_long_text_after_the_marker_is_no_expression():
    assert extract_math_answer("#### " + "so " * MAX_ANSWER_LENGTH + "$5$") is None


def test_math_is_graded_outside_the_main_thread():
    scores = []
    thread = threading.Thread(target=lambda: scores.append(grade_math("#### \\frac{1}{2}", "0.5")))
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_missing_math_verify_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install hf-evidenceflow\[math\]"):
        math_reward([], [])
