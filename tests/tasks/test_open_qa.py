"""Open-domain questions: loading, and the comparison of normalized answers."""

import pytest
from task_rows import QA

from hf_evidenceflow.tasks import extract_open_answer, load_open_qa, open_qa_reward


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


@pytest.mark.parametrize("answer", ["The Eiffel Tower", "eiffel tower.", " EIFFEL   TOWER!", '"Eiffel Tower"'])
def test_open_answers_are_compared_after_normalization(answer):
    assert open_qa_reward([f"#### {answer}"], ["the Eiffel Tower"]) == [1.0]


@pytest.mark.parametrize("answer", ["Eiffel", "the Eiffel Tower in Paris", "tower Eiffel"])
def test_open_answers_must_match_whole(answer):
    assert open_qa_reward([f"#### {answer}"], ["Eiffel Tower"]) == [0.0]


def test_any_of_several_golds_is_right():
    assert open_qa_reward(["#### La Tour Eiffel"], [["Eiffel Tower", "la tour Eiffel"]]) == [1.0]


def test_articles_inside_words_are_kept():
    assert extract_open_answer("#### Athena and theatre") == "athena and theatre"


def test_answer_of_nothing_but_articles_and_punctuation_is_unreadable():
    assert extract_open_answer("#### The ...") is None
    assert open_qa_reward(["#### The ..."], ["Louvre"]) == [0.0]
