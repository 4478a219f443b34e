"""Multiple choice: loading, and which letter an answer chooses."""

import pytest
from task_rows import ARC, MMLU

from hf_evidenceflow.tasks import (
    MMLU_STEM_SUBJECTS,
    extract_choice,
    load_arc_challenge,
    load_mmlu_stem,
    multiple_choice_reward,
)


def test_options_are_listed_by_letter(write_jsonl):
    path = str(write_jsonl("test.jsonl", [MMLU]))
    prompt = load_mmlu_stem(path, conversational=False, system_prompt=None)[0]["prompt"]
    assert prompt == "Which?\nA. Sun\nB. Moon\nC. Mars\n"


def test_solution_of_a_multiple_choice_question_is_the_right_option(write_jsonl):
    assert load_arc_challenge(str(write_jsonl("train.jsonl", [ARC])))[0]["solution"] == "Moon"


def test_mmlu_stem_has_18_different_subjects():
    assert len(set(MMLU_STEM_SUBJECTS)) == len(MMLU_STEM_SUBJECTS) == 18


@pytest.mark.parametrize(
    "change",
    [
        {"answer": 3},
        {"answer": -1},
        {"answer": "B"},
        {"choices": ["Sun"], "answer": 0},
        {"choices": ["x"] * 6},
        {"choices": ["Sun", None, "Moon"]},
        {"choices": "Sun"},
    ],
)
def test_multiple_choice_row_without_a_right_option_is_an_error(write_jsonl, change):
    with pytest.raises(ValueError, match="Row 0 is no question of two to 5 options"):
        load_mmlu_stem(str(write_jsonl("test.jsonl", [{**MMLU, **change}])))


def test_arc_key_that_is_no_label_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match="Row 0 is no question"):
        load_arc_challenge(str(write_jsonl("train.jsonl", [{**ARC, "answerKey": "C"}])))


@pytest.mark.parametrize("gold", ["F", "B or C", 1])
def test_gold_of_multiple_choice_must_be_one_letter(gold):
    with pytest.raises(ValueError, match="must be a letter from A to E"):
        multiple_choice_reward(["#### B"], [gold])


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "(b).",
        "**B**",
        "B.",
        "The answer is B.",
        "Answer: (B)",
        "Option B",
        "B. A red cell",
        "B) 42",
        "(B) 42",
        "**B.** Vitamin C",
        "\\boxed{B}",
        "$\\boxed{\\text{B}}$",
        "\\text{B}",
        "\\boxed{\\textbf{(B)}}.",
        "B - because cells divide",
        "B, because cells divide",
        "B: cells",
        "`B`",
        "\uff22",
        "A closer look\nCells divide.\n#### B",
    ],
)
def test_one_letter_is_a_choice(answer):
    assert extract_choice(f"#### {answer}") == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "F",
        "1",
        "B or C",
        "B, C",
        "B/C",
        "BC",
        "B) and C",
        "B. or C.",
        "B. C. D.",
        "A red cell",
        "a cell",
        "vitamin C",
        "not B",
        "\\boxed{B} or \\boxed{C}",
        "\\boxed{B}\\boxed{C}",
        "B - C",
        "B or C\n#### B",
    ],
)
def test_text_that_is_not_one_choice_has_no_letter(answer):
    assert extract_choice(f"#### {answer}") is None


def test_wrong_letter_scores_0():
    assert multiple_choice_reward(["#### C"], ["B"]) == [0.0]
