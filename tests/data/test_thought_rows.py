"""Rows with solutions: what becomes steps and targets."""

import pytest
from task_rows import GSM8K

from hf_evidenceflow import load_thought_rows
from hf_evidenceflow.data.thought_rows import step_splitter


def load(write_jsonl, row, **settings):
    path = write_jsonl("data.jsonl", [row])
    return load_thought_rows(str(path), conversational=False, system_prompt=None, **settings)[0]


def test_traces_become_targets_and_the_first_one_the_steps(write_jsonl):
    row = load(write_jsonl, {"prompt": "p", "answer": "b", "traces": [["a", "b"], ["c", "b"]]})
    assert row["thought_targets"] == [{"a": 0.5, "c": 0.5}, {"b": 1.0}]
    assert row["steps"] == ["a", "b"]


def test_own_steps_stay_beside_traces(write_jsonl):
    row = load(write_jsonl, {"prompt": "p", "answer": "b", "traces": [["a"], ["c"]], "steps": ["d"]})
    assert row["steps"] == ["d"]


def test_a_trace_that_is_a_text_is_split_up_to_its_answer(write_jsonl):
    row = load(write_jsonl, {"prompt": "p", "answer": "b", "traces": ["a\nb\n#### b"]})
    assert row["steps"] == ["a", "b"]


def test_the_solution_of_gsm8k_becomes_steps_without_annotations(write_jsonl):
    row = load(write_jsonl, GSM8K)
    assert row == {"prompt": "How much?\n", "answer": "70,000", "steps": ["2*35,000=70,000"]}


def test_equations_are_the_annotations_of_another_column(write_jsonl):
    row = {"question": "q", "cot": "<<16-3=13>> <<13*2=26>>", "answer": "#### 26"}
    split = step_splitter("equations")
    assert load(write_jsonl, row, steps_column="cot", split_steps=split)["steps"] == ["<<16-3=13>>", "<<13*2=26>>"]


def test_tokens_keep_their_spaces(tokenizer):
    assert step_splitter("tokens", tokenizer)("a b") == ["a", " ", "b"]


def test_a_question_that_only_has_an_answer_names_what_it_lacks(write_jsonl):
    with pytest.raises(ValueError, match="Row 0 says nothing about its thoughts.*it has prompt, answer"):
        load(write_jsonl, {"prompt": "p", "answer": "b"})


@pytest.mark.parametrize("trace", [[1], {"a": 1}, []])
def test_a_wrong_trace_names_its_row(write_jsonl, trace):
    with pytest.raises(ValueError, match=r"[rR]ow 0"):
        load(write_jsonl, {"prompt": "p", "answer": "b", "traces": [trace]})


def test_an_unknown_split_names_those_that_there_are():
    with pytest.raises(ValueError, match="`step_split` must be one of 'lines', 'equations', 'tokens', got 'words'"):
        step_splitter("words")
