"""The three questions of a stranger: each answer has at most six steps, and every step is there."""

import importlib
import importlib.util
import re
from functools import reduce

import pytest
from repository import ROOT


PAGES = ("prompt_to_loss", "add_a_task", "add_a_model_family")
_STEP = re.compile(r"^\d\. `([\w/]+)\.py:([\w.]+)`", re.M)


def steps(page):
    return _STEP.findall((ROOT / "docs" / f"{page}.md").read_text())


def resolve(path, name):
    """The object that a step names, imported."""
    module = path.rpartition("/")[2] if path.startswith("tests/helpers/") else path.replace("/", ".")
    return reduce(getattr, name.split("."), importlib.import_module(module.removesuffix(".__init__")))


@pytest.mark.parametrize("page", PAGES)
def test_an_answer_takes_at_most_six_steps_and_one_screen(page):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert 3 < len(steps(page)) <= 6
    assert len(re.findall(r"^\d\. ", text, re.M)) == len(steps(page))
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    ("path", "name"), [step for page in PAGES for step in steps(page)], ids=lambda value: value.rpartition("/")[2]
)
def test_a_step_is_where_the_page_says(path, name):
    assert (ROOT / f"{path}.py").is_file()
    resolve(path, name)


def test_a_step_that_is_gone_is_found():
    with pytest.raises(AttributeError):
        resolve("hf_evidenceflow/trainers/hrpo_trainer", "HRPOTrainer.compute_the_loss")
