"""GSM8K from a local folder for the harnesses."""

import pytest
from data_files import write_jsonl  # noqa: F401
from task_rows import GSM8K

from hf_evidenceflow.integrations.tasks.gsm8k_rows import load_dataset, process_results


def test_the_rows_are_those_of_the_folder_in_the_environment(write_jsonl, monkeypatch):  # noqa: F811
    monkeypatch.setenv("GSM8K_DATA", str(write_jsonl("test.jsonl", [GSM8K]).parent))
    row = load_dataset(version=1)["test"][0]
    assert row["prompt"].endswith("\n\nHow much?\n") and row["answer"] == "70,000"


def test_without_a_folder_the_error_names_the_variable(monkeypatch):
    monkeypatch.delenv("GSM8K_DATA", raising=False)
    with pytest.raises(ValueError, match="GSM8K_DATA"):
        load_dataset()


def test_an_answer_without_marker_is_read_by_the_flexible_grader_only():
    assert process_results({"answer": "70,000"}, ["It is 70000."]) == {"strict": 0.0, "flexible": 1.0}
