"""The recipe that lets a model write its own traces: which samples are kept, and what it says if none is."""

import importlib.util
import json

import pytest
from repository import RECIPES

from hf_evidenceflow import load_thought_rows
from hf_evidenceflow.evaluation.completions import Completion


@pytest.fixture
def recipe(monkeypatch):
    """The module, in which a model writes `texts` for each problem."""
    spec = importlib.util.spec_from_file_location("sample_traces", RECIPES / "sample_traces.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.texts = []

    def complete(model, tokenizer, prompts, *, num_samples, **kwargs):
        assert num_samples == len(module.texts)
        for sample, text in enumerate(module.texts):
            for index in reversed(range(len(prompts))):
                yield [Completion(index, sample, "", text, 1, 1, True, None, None, 0.0)]

    monkeypatch.setattr(module, "generate_completions", complete)
    return module


@pytest.fixture
def run(recipe, plain_checkpoint, tmp_path):
    rows = [{"prompt": "p", "answer": "b"}, {"prompt": "q", "answer": "c"}]
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(texts, *options):
        recipe.texts = texts
        paths = ("--dataset_name_or_path", str(problems), "--output_file", str(tmp_path / "traces.jsonl"))
        model = ("--model_name_or_path", plain_checkpoint, "--device", "cpu")
        recipe.main([*model, *paths, "--num_samples", str(len(texts)), "--step_split", "tokens", *options])
        return [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]

    return run


def test_right_solutions_become_traces_and_problems_without_any_are_left_out(run):
    rows = run(["ab#### b", "cb####b", "ac#### a", "ab"])
    assert rows == [{"prompt": "p", "answer": "b", "traces": [["a", "b"], ["c", "b"]]}]


def test_keep_wrong_keeps_all_that_have_an_answer(run):
    rows = run(["ab#### b", "ac#### a", "ab"], "--keep_wrong", "true")
    assert [row["traces"] for row in rows] == [[["a", "b"], ["a", "c"]]] * 2


def test_the_rows_are_read_by_latent_training(run, tmp_path):
    run(["ab#### b", "cb#### b"])
    assert load_thought_rows(str(tmp_path / "traces.jsonl"))[0]["thought_targets"] == [
        {"a": 0.5, "c": 0.5},
        {"b": 1.0},
    ]


def test_no_usable_solution_is_an_error_that_shows_one(run):
    with pytest.raises(ValueError, match="None of the 4 solutions can be used.*The first one: 'ab'"):
        run(["ab", "ab"])


def test_one_sample_is_refused(run):
    with pytest.raises(ValueError, match="`num_samples` must be at least 2, got 1"):
        run(["ab#### b"])
