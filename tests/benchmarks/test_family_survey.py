"""The survey of decoders, and the page that it writes."""

import importlib
import re

import pytest
import transformers
from repository import BENCHMARKS, ROOT
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


PAGE = (ROOT / "docs" / "which_models.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
    for cells in (line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `"))
    if len(cells) == 4
}


@pytest.fixture
def survey(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("family_survey").survey


@pytest.mark.skipif(f"transformers {transformers.__version__} " not in PAGE, reason="the page is of another version")
def test_the_page_has_each_decoder_of_transformers():
    assert set(ROWS) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_each_type_that_fails_has_the_name_of_its_check():
    assert sum(row[0].startswith("yes") for row in ROWS.values()) >= 25
    assert all(re.match(r"yes|`\w+`: .+", row[0]) for row in ROWS.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "lfm2", "gpt2", "falcon_h1"])
def test_a_row_of_the_page_is_what_the_survey_finds(family, survey):
    assert list(survey(family)) == ROWS[family]
