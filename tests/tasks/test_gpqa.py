"""GPQA: the order of the options."""

import pytest
from task_rows import GPQA

from hf_evidenceflow.tasks import load_gpqa


def options(path):
    row = load_gpqa(path, conversational=False, system_prompt=None)[0]
    return row["prompt"].splitlines()[1:], row["answer"]


def test_the_order_of_the_options_does_not_depend_on_which_is_right(write_jsonl):
    swapped = GPQA | {"Correct Answer": GPQA["Incorrect Answer 2"], "Incorrect Answer 2": GPQA["Correct Answer"]}
    (listed, right), (again, other) = (options(str(write_jsonl("train.jsonl", [row]))) for row in (GPQA, swapped))
    assert listed == again and right != other


def test_the_letter_is_that_of_the_right_option(write_jsonl):
    listed, letter = options(str(write_jsonl("train.jsonl", [GPQA])))
    assert f"{letter}. Sun" in listed


def test_an_option_that_equals_the_right_one_is_an_error(write_jsonl):
    with pytest.raises(ValueError, match="Row 0 is no question"):
        load_gpqa(str(write_jsonl("train.jsonl", [GPQA | {"Incorrect Answer 1": "Sun"}])))
