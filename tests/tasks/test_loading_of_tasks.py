"""The loaders of the tasks, on files in the formats of the published sets."""

import pytest

from hf_evidenceflow.tasks import (
    MATH_SUBJECTS,
    MMLU_STEM_SUBJECTS,
    gsm8k_reward,
    load_arc_challenge,
    load_gsm8k,
    load_math,
    load_mmlu_stem,
    load_open_qa,
    math_reward,
    multiple_choice_reward,
    open_qa_reward,
)


GSM8K = {"question": "How much?", "answer": "2*35,000=<<2*35000=70000>>70,000\n#### 70,000"}
MATH = {"problem": "Find $x$.", "solution": "So $x=\\boxed{\\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"}
MMLU = {"question": "Which?", "subject": "astronomy", "choices": ["Sun", "Moon", "Mars"], "answer": 2}
ARC = {"id": "1", "question": "Which?", "choices": {"text": ["Sun", "Moon"], "label": ["1", "2"]}, "answerKey": "2"}
QA = {"question": "Where?", "contexts": ["One.", "Two.", "Three.", "Four."], "golden_answers": ["Paris", "Lutetia"]}

LOADERS = [
    (load_gsm8k, GSM8K, "70,000", gsm8k_reward),
    (load_math, MATH, "\\frac{1}{2}", math_reward),
    (load_mmlu_stem, MMLU, "C", multiple_choice_reward),
    (load_arc_challenge, ARC, "B", multiple_choice_reward),
    (load_open_qa, QA, ["Paris", "Lutetia"], open_qa_reward),
]


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_loader_gives_a_prompt_and_the_final_answer(write_jsonl, load, row, answer, reward):
    dataset = load(str(write_jsonl("data.jsonl", [row])), split="train")
    assert dataset[0]["answer"] == answer
    assert [message["role"] for message in dataset[0]["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_loaded_answers_are_what_the_reward_takes(write_jsonl, load, row, answer, reward):
    dataset = load(str(write_jsonl("data.jsonl", [row])), split="train")
    text = answer if isinstance(answer, str) else answer[-1]
    assert reward([f"#### {text}", "#### wrong"], [dataset[0]["answer"]] * 2) == [1.0, 0.0]


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_plain_prompt_without_instruction_is_the_question(write_jsonl, load, row, answer, reward):
    path = str(write_jsonl("data.jsonl", [row]))
    prompt = load(path, split="train", conversational=False, system_prompt=None)[0]["prompt"]
    asked = row.get("question") or row["problem"]
    assert asked in prompt and "####" not in prompt and prompt.endswith("\n")


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_max_samples_limits_the_rows(write_jsonl, load, row, answer, reward):
    assert len(load(str(write_jsonl("data.jsonl", [row] * 5)), split="train", max_samples=2)) == 2


@pytest.mark.parametrize(("load", "row", "answer", "reward"), LOADERS)
def test_missing_column_is_an_error(write_jsonl, load, row, answer, reward):
    path = write_jsonl("data.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"lacks .*found are text"):
        load(str(path), split="train")


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


def test_math_row_without_a_box_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match=r"Row 0 has no answer to grade by: its `solution` has no closed \\boxed{}"):
        load_math(str(write_jsonl("train.jsonl", [{**MATH, "solution": "So $x=1$."}])))


def test_math_joins_its_seven_subjects(write_jsonl, tmp_path):
    for subject in MATH_SUBJECTS:
        write_jsonl(f"math/{subject}/train.jsonl", [{**MATH, "problem": subject}])
    assert load_math(str(tmp_path / "math"))["question"] == list(MATH_SUBJECTS) and len(MATH_SUBJECTS) == 7


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


def test_first_contexts_are_shown_before_the_question(write_jsonl):
    path = str(write_jsonl("train.jsonl", [QA]))
    prompt = load_open_qa(path, conversational=False, system_prompt=None, max_contexts=2)[0]["prompt"]
    assert prompt == "Passages, of which some may not help:\n[1] One.\n[2] Two.\n\nWhere?\n"


def test_question_is_asked_alone_without_contexts(write_jsonl):
    path = str(write_jsonl("train.jsonl", [{"question": "Where?", "answer": "Paris"}]))
    assert load_open_qa(path, conversational=False, system_prompt=None, max_contexts=0)[0]["prompt"] == "Where?\n"


def test_format_of_squad_is_read(write_jsonl):
    row = {"question": "Where?", "context": "In Paris.", "answers": {"text": ["Paris"], "answer_start": [3]}}
    loaded = load_open_qa(str(write_jsonl("train.jsonl", [row])))[0]
    assert loaded["answer"] == ["Paris"] and "[1] In Paris." in loaded["prompt"][1]["content"]


def test_open_question_without_a_gold_answer_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match="Row 0 has no gold answer in `golden_answers`"):
        load_open_qa(str(write_jsonl("train.jsonl", [{**QA, "golden_answers": [" "]}])))


def test_negative_number_of_contexts_is_an_error():
    with pytest.raises(ValueError, match="`max_contexts` must be 0 or more, got -1"):
        load_open_qa("owner/name", max_contexts=-1)
