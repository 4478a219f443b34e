"""AIME: which answers a row may have."""

import pytest
from task_rows import AIME

from hf_evidenceflow.tasks import load_aime


@pytest.mark.parametrize("answer", ["1000", "-7", "3.5", "", "seven"])
def test_an_answer_that_is_no_integer_up_to_999_is_an_error(write_jsonl, answer):
    with pytest.raises(ValueError, match="Row 0 has no answer .*an integer from 0 to 999"):
        load_aime(str(write_jsonl("train.jsonl", [AIME | {"answer": answer}])))
