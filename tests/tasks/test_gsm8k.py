"""GSM8K: loading, and what each of its graders reads."""

import random
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from task_rows import GSM8K

from hf_evidenceflow.tasks.gsm8k import GRADERS, extract_answer, grade, gsm8k_reward, is_parsable, load_gsm8k
from hf_evidenceflow.tasks.hrpo_legacy import legacy_number


SOLUTION = "Half of 140,000 is 140000/2 = <<140000/2=70000>>70,000.\n#### 70,000"


def test_gsm8k_keeps_question_and_whole_solution(write_jsonl):
    row = load_gsm8k(str(write_jsonl("train.jsonl", [GSM8K])))[0]
    assert (row["question"], row["solution"]) == (GSM8K["question"], GSM8K["answer"])


@pytest.mark.parametrize("answer", ["no marker", "####", "#### 5 or 6", "#### 1/0"])
def test_gsm8k_row_without_a_number_to_grade_by_is_an_error(write_jsonl, answer):
    path = write_jsonl("train.jsonl", [GSM8K, {"question": "a", "answer": answer}])
    with pytest.raises(ValueError, match="Row 1 has no answer to grade by"):
        load_gsm8k(str(path))


def test_gsm8k_answer_may_be_the_number_alone(write_jsonl):
    assert load_gsm8k(str(write_jsonl("train.jsonl", [{"question": "a", "answer": 5}])))[0]["answer"] == "5"


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("#### 50%", "50"),
        ("#### $70,000", "70000"),
        ("#### 70000", "70,000"),
        ("#### .5", "0.5"),
        ("#### 18.", "18"),
        ("#### 18.00", "18"),
        ("#### 18", "18.00"),
        ("#### 1/2", "0.5"),
        ("#### \u22125", "-5"),
        ("#### 18 dollars", "18"),
        ("2 + 3 = 5\n####5", "5"),
        ("##### 5", "5"),
        ("#### 2\\frac{1}{2}", "2.5"),
        ("#### 18 ####", "18"),
        ("#### Step 1\nAdd.\n#### Step 2\nHalve.\n#### 18", "18"),
        ("#### 1. Add\n#### 2. Halve\n#### Answer: 18", "18"),
        ("#### Solution\n2 pens, 3 cents\n#### $\\boxed{18}$", "18"),
        ("#### 18\n#### Check\n20 - 2", "18"),
        ("<think>So #### 17</think>\n#### 18", "18"),
        ("Opened by the prompt #### 17</think>#### 18", "18"),
        ("<think>#### 16 <think>#### 17</think>#### 18", "18"),
        ("#### 18 <think>#### 17", "18"),
    ],
)
def test_right_answer_scores_1(completion, gold):
    assert grade(completion, gold) == 1.0


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("#### 1/0", "1"),
        ("####", "3"),
        ("", "3"),
        ("<think>#### 3</think>", "3"),
        ("<think>#### 3", "3"),
        ("#### 3</think>", "3"),
        ("#### 2 <think></think> #### 3", "3"),
        ("#### Step 3\nAdd.", "3"),
        ("#### 2 or 3\n#### 3", "3"),
        ("3", "3"),
        ("#### 3 #### 3", "3"),
        ("########3", "3"),
        ("#### 18 or 20", "18"),
        ("#### 20 or 18", "18"),
        ("#### 5 (since 2+3=5)", "5"),
        ("#### 5", "-5"),
        ("#### -5", "5"),
        ("#### 7,0", "70"),
        ("#### eighteen", "18"),
        ("18 #### dollars", "18"),
    ],
)
def test_wrong_or_unreadable_answer_scores_0(completion, gold):
    assert grade(completion, gold) == 0.0


def test_gold_may_be_the_whole_solution():
    assert grade("#### 70000", SOLUTION) == 1.0


def test_gold_is_after_the_last_marker_of_a_solution():
    assert grade("#### 6", "#### 5\n#### 6") == 1.0


@pytest.mark.parametrize("grader", GRADERS)
def test_solution_is_right_by_its_own_gold(grader):
    assert grade(SOLUTION, SOLUTION, grader) == 1.0


@pytest.mark.parametrize("gold", ["70,000", "2,125", "1,234,567", "-1,000"])
@pytest.mark.parametrize("grader", ["strict", "flexible", "math_verify"])
def test_commas_make_no_difference(gold, grader):
    plain = gold.replace(",", "")
    assert grade(f"#### {plain}", gold, grader) == grade(f"#### {gold}", plain, grader) == 1.0


@pytest.mark.parametrize(
    ("answer", "read"),
    [("70,000", 0.0), ("2,125", 125.0), ("18.5", 18.5), ("1/2", 0.5), ("1/0", None), ("5 to 6.", 6.0)],
)
def test_legacy_parser_reads_as_the_public_code_does(answer, read):
    assert legacy_number(answer) == read


def test_legacy_grader_has_the_fault_of_the_public_code():
    assert grade("#### 70000", "70,000", "hrpo_legacy") == 0.0
    assert grade("#### 5,000", "70,000", "hrpo_legacy") == 1.0


def test_legacy_grader_takes_negative_zero_for_zero():
    assert grade("#### -0", "0", "hrpo_legacy") == 1.0


def test_flexible_grader_needs_no_marker():
    assert grade("The result is 18 dollars.", "18", "flexible") == 1.0


@pytest.mark.parametrize("grader", ["strict", "hrpo_legacy", "math_verify"])
@pytest.mark.parametrize("completion", ["The result is 18.", "#### 18 #### 18", ""])
def test_other_graders_need_exactly_one_marker(grader, completion):
    assert grade(completion, "18", grader) == 0.0


def test_equal_numbers_are_extracted_as_the_same_text():
    assert {extract_answer(f"#### {text}") for text in ("0.5", ".50", "1/2", "$0.5")} == {"0.5"}


@pytest.mark.parametrize("grader", GRADERS)
def test_extraction_finds_no_answer_in_an_empty_completion(grader):
    assert extract_answer("", grader) is None and not is_parsable("", grader)


def test_unknown_grader_is_an_error_that_names_the_graders():
    with pytest.raises(ValueError, match="strict, flexible, hrpo_legacy, math_verify, got 'loose'"):
        grade("#### 5", "5", grader="loose")


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize(
    "junk", [None, 5, True, 5.5, [], ["#### 5"], [None], {}, b"#### 5", [{"content": None}], [{}], object()]
)
def test_junk_completion_scores_0(junk, grader):
    assert grade(junk, "5", grader) == 0.0


@pytest.mark.parametrize(
    "gold",
    [
        18,
        18.0,
        np.int64(18),
        np.float32(18),
        np.array(18),
        Decimal("18.0"),
        Decimal("1.8E+1"),
        Fraction(36, 2),
        torch.tensor(18),
        torch.tensor(18.0, dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_gold_of_any_type_of_number_counts(gold):
    assert grade("#### 18", gold) == 1.0


def test_gold_of_a_short_float_is_the_number_that_was_written():
    assert grade("#### 0.1", np.float32(0.1)) == grade("#### 0.1", torch.tensor(0.1)) == 1.0


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize(
    "gold", [None, True, [], ["5"], {}, "", "none", float("nan"), float("inf"), np.array([5]), 5j]
)
def test_gold_without_a_number_is_an_error(gold, grader):
    with pytest.raises(ValueError, match=r"cannot be graded by: .*must be a number"):
        grade("no answer", gold, grader)


def test_gold_beyond_the_conversion_limit_of_python_is_an_error():
    with pytest.raises(ValueError, match=r"a number of 16610 bits \(int\)"):
        grade("#### 5", 10**5000)


def test_error_of_a_gold_names_its_place_and_value():
    with pytest.raises(ValueError, match=r"Gold 1 of the batch, in `answer`, .*'eighteen' \(str\)"):
        gsm8k_reward(["#### 5", "#### 5"], ["5", "eighteen"])


@pytest.mark.parametrize("grader", GRADERS)
def test_no_text_raises(grader):
    rng = random.Random(0)
    pieces = ["####", "25", "\u2212", "\\frac", *"#1,./0-$% \nx{}^()½"]
    for _ in range(60 if grader == "math_verify" else 2000):
        text = "#### " + "".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        assert grade(text, "25", grader) in (0.0, 1.0)


@pytest.mark.parametrize("piece", ["#", "####", "1,", "1/", "-", "$", "1", "{", "^9", "9!", "#### 1"])
@pytest.mark.parametrize("grader", GRADERS)
def test_time_is_linear_in_the_length_of_the_completion(piece, grader):
    # 1 MB takes below half a second; quadratic work on it would take hours
    text = "#### " + piece * (1_000_000 // len(piece))
    start = time.perf_counter()
    grade(text, "5", grader)
    assert time.perf_counter() - start < 10


def test_math_verify_works_outside_the_main_thread():
    scores = []
    thread = threading.Thread(target=lambda: scores.append(grade("#### $70,000", "70000", "math_verify")))
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_missing_math_verify_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"pip install hf-evidenceflow\[math\]"):
        grade("no marker", "5", "math_verify")
