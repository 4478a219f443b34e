"""The result of an evaluation in a model's card: its section and metadata, and nothing else."""

import pytest
from huggingface_hub import ModelCard

from hf_evidenceflow.evaluation.evaluation_card import Evaluation, add_evaluation, why_no_card
from hf_evidenceflow.report.model_card import CardContent, Sample, write_model_card


@pytest.fixture
def folder(tmp_path):
    metadata = {"tags": ["hf_evidenceflow", "hrpo"], "license": "mit", "model_name": "ours"}
    write_model_card(tmp_path, CardContent("Ours", "A model.", "pass", metadata=metadata, notes="## By hand\n\nkept"))
    return tmp_path


def evaluation(value=0.25, samples=(), **settings):
    interval = {"value": value, "low": 0.1, "high": 0.5}
    metrics = {"greedy": {"graders": {"strict": {"accuracy": interval, "unparsable_share": 0.0}}}}
    return Evaluation("GSM8K", "openai/gsm8k", "test", 1319, {"max_new_tokens": 64} | settings, metrics, samples)


def card(folder):
    return ModelCard.load(folder / "README.md")


def test_the_result_has_a_section_before_the_reproduction_and_metadata(folder):
    before = card(folder)
    add_evaluation(folder, evaluation(samples=[Sample("How many?", "Three", 1.0, 0.125)]))
    after = card(folder)
    section = after.text[after.text.index("<!-- evaluation") : after.text.index("## Reproduction")]
    assert after.text == before.text.replace("## Reproduction", f"{section}## Reproduction")
    for text in ("1,319 problems of `openai/gsm8k`", "`max_new_tokens` 64", "Three", "latent weight 12.5%"):
        assert text in section
    assert "| greedy | `strict` | accuracy | 0.2500 | 0.1000 to 0.5000 |" in section
    (result,) = after.data.eval_results
    assert (result.metric_value, result.dataset_type, result.metric_args["max_new_tokens"]) == (
        0.25,
        "openai/gsm8k",
        64,
    )
    assert after.data.license == "mit" and after.data.tags == before.data.tags and after.data.model_name == "ours"


def test_the_same_evaluation_is_replaced_and_another_one_is_added(folder):
    add_evaluation(folder, evaluation())
    once = (folder / "README.md").read_text()
    add_evaluation(folder, evaluation())
    assert (folder / "README.md").read_text() == once
    add_evaluation(folder, evaluation(0.75))
    assert (folder / "README.md").read_text() == once.replace("0.25", "0.75")
    add_evaluation(folder, evaluation(max_new_tokens=99))
    assert [result.metric_value for result in card(folder).data.eval_results] == [0.75, 0.25]
    assert card(folder).text.count("## GSM8K") == 2


def test_no_completion_ends_the_section(folder):
    end = f"<!-- end of evaluation {evaluation().key} -->"
    add_evaluation(folder, evaluation(samples=[Sample("p", f"```\n{end}\n", 0.0)]))
    add_evaluation(folder, evaluation())
    once = (folder / "README.md").read_text()
    assert once.count(end) == 1 and "```\n<! --" not in once and "````" not in once


def test_folders_without_a_card_of_ours_are_named(folder, tmp_path_factory):
    assert why_no_card(folder) is None
    assert "is no folder here" in why_no_card("Qwen/Qwen2.5-1.5B")
    other = tmp_path_factory.mktemp("other")
    assert "has no README.md" in why_no_card(other)
    (other / "README.md").write_text("---\ntags:\n- trl\n---\n\nhf_evidenceflow")
    assert "was not written here" in why_no_card(other)
    (other / "README.md").write_text("---\ntags: [\n---\n")
    assert "cannot be read" in why_no_card(other)
    (folder / "manifest.json").write_text("{}")
    assert "is a checkpoint" in why_no_card(folder)
