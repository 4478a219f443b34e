import json

import pytest

from hf_evidenceflow.evaluation.chat_template import evaluation_chat_template_kwargs, parse_chat_template_kwargs


TRAINED = {"enable_thinking": False}


@pytest.fixture
def trained(tmp_path):
    record = {"status": "finished", "configs": {"training": {"chat_template_kwargs": TRAINED}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "checkpoint-3").mkdir()
    return tmp_path


@pytest.mark.parametrize("place", [".", "checkpoint-3"])
def test_evaluation_takes_the_arguments_of_the_training_and_says_so(trained, place, caplog):
    assert evaluation_chat_template_kwargs(None, trained / place) == TRAINED
    assert '{"enable_thinking": false}' in caplog.text and str(trained / "run.json") in caplog.text


@pytest.mark.parametrize("given", [{}, {"enable_thinking": True}])
def test_given_arguments_come_before_those_of_the_training(trained, given):
    assert evaluation_chat_template_kwargs(given, trained) == given


def test_folder_without_a_record_and_name_on_the_hub_have_none(tmp_path):
    (tmp_path / "other").mkdir()
    assert evaluation_chat_template_kwargs(None, tmp_path / "other") == {}
    assert evaluation_chat_template_kwargs(None, "organization/model") == {}


def test_arguments_are_read_from_json():
    assert parse_chat_template_kwargs('{"enable_thinking": false}') == TRAINED
    assert parse_chat_template_kwargs(None) is None


@pytest.mark.parametrize("given", ["enable_thinking", "[1]", "{"])
def test_arguments_that_are_no_object_are_an_error(given):
    with pytest.raises(ValueError, match="must be a JSON object such as"):
        parse_chat_template_kwargs(given)
