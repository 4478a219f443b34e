"""Soft targets from discrete solutions, written or sampled."""

import pytest

from hf_evidenceflow import thought_targets_from_traces, traces_from_samples
from hf_evidenceflow.tasks import generate_set_problems, set_runs, set_tracking_reward


def test_each_position_has_the_shares_of_its_steps():
    targets = thought_targets_from_traces([["a", "b", "c"], ["a", "d", "c"], ["e", "d", "c"]])
    assert targets == [{"a": 2 / 3, "e": 1 / 3}, {"b": 1 / 3, "d": 2 / 3}, {"c": 1.0}]


def test_a_trace_that_has_ended_does_not_count():
    assert thought_targets_from_traces([["a"], ["a", "b"], ["c", "d"]])[1] == {"b": 0.5, "d": 0.5}


def test_one_trace_gives_its_own_steps():
    assert thought_targets_from_traces([["a", "b"]]) == [{"a": 1.0}, {"b": 1.0}]


def test_runs_of_a_problem_come_to_the_set_of_its_oracle():
    (row,) = generate_set_problems(1, seed=3, moves=5)
    targets = thought_targets_from_traces(set_runs(row, 300))
    assert list(map(set, targets)) == list(map(set, row["thought_targets"]))
    assert all(sum(target.values()) == pytest.approx(1) for target in targets)


@pytest.mark.parametrize(
    ("traces", "error", "message"),
    [
        ([], ValueError, "There are no traces"),
        ([["a"], []], ValueError, "Trace 1 has no steps"),
        (["ab"], TypeError, "Trace 0 must be a list of steps, got the text 'ab'"),
        ([["a", 3]], TypeError, "A step of trace 0 must be a text, got 3"),
    ],
)
def test_what_is_no_list_of_steps_is_refused(traces, error, message):
    with pytest.raises(error, match=message):
        thought_targets_from_traces(traces)


def test_the_steps_of_a_sample_end_at_the_marker():
    assert traces_from_samples(["3+4=7\n7-2=5\n#### 5"]) == [["3+4=7", "7-2=5"]]


def test_samples_without_one_marker_or_without_steps_are_left_out():
    assert traces_from_samples(["a\nb", "a #### 1 #### 2", "#### 3", "a\n#### 4"]) == [["a"]]


def test_only_right_samples_are_kept_with_a_reward():
    samples = ["c1 c2#### c2", "c1 c3#### c3", "c4 c2#### c2"]
    traces = traces_from_samples(samples, " ", reward=set_tracking_reward, answer="c2")
    assert traces == [["c1", "c2"], ["c4", "c2"]]


def test_no_right_sample_gives_no_trace():
    assert traces_from_samples(["c1#### c1"], reward=set_tracking_reward, answer="c2") == []


def test_a_function_splits_what_has_no_separator():
    assert traces_from_samples(["c1c2####c2"], lambda text: [f"c{name}" for name in text.split("c") if name]) == [
        ["c1", "c2"]
    ]


def test_chat_messages_are_read():
    assert traces_from_samples([[{"role": "assistant", "content": "a\nb\n#### 1"}]]) == [["a", "b"]]


def test_an_empty_separator_is_refused():
    with pytest.raises(ValueError, match="`split` must be a text between steps"):
        traces_from_samples(["a#### b"], "")


@pytest.mark.parametrize("given", [{"reward": set_tracking_reward}, {"answer": "c1"}])
def test_a_reward_needs_the_gold(given):
    with pytest.raises(ValueError, match="go together"):
        traces_from_samples(["a#### c1"], **given)
