import io

import pytest
from rich.console import Console

from hf_evidenceflow.evaluation.accuracy import accuracy_table, summarize_completions
from hf_evidenceflow.evaluation.statistics import mean_interval, proportion_interval


def make_rows(outcomes, thinking=None):
    """One row per completion: `outcomes` holds, per problem, 1 (right), 0 (wrong) or `None` (cannot be read)."""
    return [
        {
            "id": index,
            "sample": sample,
            "scores": {"strict": float(outcome or 0)},
            "extracted": {"strict": None if outcome is None else "5"},
            "completion_tokens": 8,
            "thinking_tokens": thinking,
            "finished": sample != 1,
            "seconds": 0.5,
        }
        for index, samples in enumerate(outcomes)
        for sample, outcome in enumerate(samples)
    ]


def test_greedy_accuracy_counts_problems():
    measures = summarize_completions(make_rows([[1], [0], [None]]), ["strict"], greedy=True)["graders"]["strict"]
    assert measures == {"accuracy": proportion_interval(1, 3)._asdict(), "unparsable_share": pytest.approx(1 / 3)}


def test_samples_are_averaged_by_problem():
    rows = make_rows([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    measures = summarize_completions(rows, ["strict"], greedy=False, seed=3)["graders"]["strict"]
    assert measures["avg@4"] == measures["pass@1"] == mean_interval([0.25, 1, 0], seed=3)._asdict()
    assert measures["pass@4"]["value"] == pytest.approx(2 / 3)


def test_pass_at_k_is_given_for_the_k_that_were_asked_for():
    rows = make_rows([[1, 0, 0, 0], [0, 0, 0, 0]])
    measures = summarize_completions(rows, ["strict"], greedy=False, pass_at=(2,))["graders"]["strict"]
    assert measures["pass@2"]["value"] == 0.25 and measures.keys() == {"avg@4", "pass@2", "unparsable_share"}


def test_a_single_sample_is_pass_at_1():
    measures = summarize_completions(make_rows([[1], [0]]), ["strict"], greedy=False)["graders"]["strict"]
    assert measures.keys() == {"avg@1", "pass@1", "unparsable_share"}


def test_lengths_speed_and_shares():
    summary = summarize_completions(make_rows([[1, 0], [0, 0]], thinking=6), ["strict"], greedy=False)
    assert summary["mean_completion_tokens"] == 8
    assert summary["tokens_per_second"] == 16
    assert summary["truncated_share"] == 0.5
    assert summary["thinking_share"] == 0.75


def test_a_problem_with_fewer_samples_is_an_error():
    with pytest.raises(ValueError, match=r"same number of completions, got \[1, 2\]"):
        summarize_completions(make_rows([[1, 0], [1]]), ["strict"], greedy=False)


def test_table_shows_value_and_interval():
    summary = summarize_completions(make_rows([[1], [0], [1]]), ["strict"], greedy=True)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(accuracy_table({"HRPO": summary}))
    text = console.export_text()
    _, low, high = proportion_interval(2, 3)
    assert all(part in text for part in ("HRPO", "0.667", f"{low:.3f} to {high:.3f}"))
