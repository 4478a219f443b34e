"""Results in the Hub's form."""

import yaml
from huggingface_hub import parse_eval_result_entries

from hf_evidenceflow.evaluation.hub_results import hub_result, why_no_hub_result, write_hub_result
from hf_evidenceflow.tasks import BENCHMARKS


GREEDY = {"greedy": {"graders": {"strict": {"accuracy": {"value": 0.25, "low": 0.2, "high": 0.31}}}}}
SAMPLED = {"sampled": {"graders": {"strict": {"avg@8": {"value": 0.5, "low": 0.4, "high": 0.6}}}}}


def read_back(tmp_path, metrics, **options):
    entry = hub_result(BENCHMARKS["gpqa_diamond"], metrics, "strict", {"thinking_mode": "none"}, **options)
    path = write_hub_result(tmp_path, "gpqa_diamond", entry)
    assert path == tmp_path / ".eval_results" / "gpqa_diamond.yaml"
    return parse_eval_result_entries(yaml.safe_load(path.read_text()))


def test_the_hub_reads_the_greedy_accuracy_in_percent(tmp_path):
    (entry,) = read_back(tmp_path, GREEDY, source_url="https://example.com/logs")
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Idavidrein/gpqa", "diamond", 25.0)
    assert "thinking_mode none" in entry.notes and entry.source_url == "https://example.com/logs"


def test_sampled_completions_go_before_the_greedy_one(tmp_path):
    (entry,) = read_back(tmp_path, GREEDY | SAMPLED)
    assert entry.value == 50.0 and "avg@8" in entry.notes


def test_a_part_of_the_problems_is_no_result_for_the_hub():
    assert "197 of the 198" in why_no_hub_result("gpqa_diamond", 197)
    assert why_no_hub_result("gpqa_diamond", 198) is None
    assert "no leaderboard" in why_no_hub_result("gsm8k_platinum", 1209)
