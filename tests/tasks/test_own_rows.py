"""Rows of one's own: which prompts and answers are taken, and what counts as right."""

import pytest

from hf_evidenceflow.tasks import load_rows, rows_reward


def test_a_prompt_stays_as_it_is_and_hides_the_question(write_jsonl):
    chat = [{"role": "user", "content": "Which?"}]
    path = write_jsonl("data.jsonl", [{"prompt": chat, "question": "other", "answer": "a"}])
    assert load_rows(str(path))["prompt"] == [chat]


def test_an_answer_is_what_stands_behind_the_solution(write_jsonl):
    path = write_jsonl("data.jsonl", [{"question": "How many?", "answer": "24+48=72\n#### 72"}])
    assert load_rows(str(path))["answer"] == ["72"]


def test_rows_without_a_prompt_name_the_columns_found(write_jsonl):
    path = write_jsonl("data.jsonl", [{"text": "a", "answer": "b"}])
    with pytest.raises(ValueError, match="lacks the columns prompt or question.*found are text, answer"):
        load_rows(str(path))


@pytest.mark.parametrize("row", [{"question": "", "answer": "a"}, {"prompt": "p", "answer": "#### "}])
def test_an_empty_prompt_or_answer_names_its_row(write_jsonl, row):
    path = write_jsonl("data.jsonl", [dict.fromkeys(row, "fine"), row])
    with pytest.raises(ValueError, match="Row 1 has no"):
        load_rows(str(path))


@pytest.mark.parametrize(
    ("completion", "gold", "score"),
    [
        ("c1c2####c2", "c2", 1.0),
        ("so #### The Red  cup.", "the red cup", 1.0),
        ("#### 1,000", "1000", 1.0),
        ("#### c2 or c3", "c2", 0.0),
        ("#### A", "a", 1.0),
        ("c2", "c2", 0.0),
        ("#### c2 #### c2", "c2", 0.0),
        ("#### c2", "#### c3", 0.0),
    ],
)
def test_the_reward_compares_what_stands_behind_the_only_marker(completion, gold, score):
    assert rows_reward([completion], [gold]) == [score]
