"""A model's own solutions become targets: which samples count, and that no oracle has a part in it."""

from types import SimpleNamespace

import pytest

from hf_evidenceflow.recipes.experiments import latent_traces
from hf_evidenceflow.recipes.experiments.latent_traces import problems_with_targets, sample_traces, trace_facts
from hf_evidenceflow.tasks import build_set_tokenizer, generate_set_problems, set_tracking_reward


PROBLEM = generate_set_problems(1, cups=5, moves=2, optional=1, operations=3, words=True)[0]
FIRST, SECOND = ([" red", " blue"], [" red", " green"])


def traced(*traces, right=()):
    return {"samples": ["", "", ""], "traces": list(traces), "right": list(right)}


def test_targets_are_the_traces_and_not_the_oracles():
    (row,) = problems_with_targets([PROBLEM], [traced(FIRST, FIRST, FIRST, SECOND)])
    assert row["thought_targets"] == [{" red": 1.0}, {" blue": 0.75, " green": 0.25}]
    assert row["answer"] == PROBLEM["answer"]


@pytest.mark.parametrize(("right", "steps"), [([], FIRST), ([SECOND], SECOND)])
def test_the_chain_is_a_right_trace_where_there_is_one(right, steps):
    (row,) = problems_with_targets([PROBLEM], [traced(FIRST, SECOND, right=right)])
    assert row["steps"] == steps


def test_problems_without_traces_are_left_out():
    assert len(problems_with_targets([PROBLEM, PROBLEM], [traced(), traced(FIRST)])) == 1


def test_without_any_trace_the_start_is_to_blame():
    with pytest.raises(ValueError, match="Train the start for longer"):
        problems_with_targets([PROBLEM], [traced()])


def test_only_whole_chains_of_known_cups_are_traces(monkeypatch):
    tokenizer = build_set_tokenizer(5, 3, words=True)
    names = [name for target in PROBLEM["thought_targets"] for name in target]
    chain = [names[0], names[-1]]
    answer = PROBLEM["answer"]
    texts = [
        f"{''.join(chain)}#### {answer}",
        f"{''.join(chain)}#### nothing",
        f"{names[0]}#### {answer}",
        f"{names[0]} dog#### {answer}",
        "".join(chain),
    ]

    def complete(*args, num_samples, **kwargs):
        assert num_samples == len(texts)
        yield [SimpleNamespace(index=0, text=text) for text in texts]

    monkeypatch.setattr(latent_traces, "generate_completions", complete)
    (row,) = sample_traces(None, tokenizer, [PROBLEM], len(texts), 0, set_tracking_reward)
    assert row == {"samples": texts, "traces": [chain, chain], "right": [chain]}


def test_the_share_of_targets_on_possible_cups_is_reported():
    possible, impossible = next(iter(PROBLEM["thought_targets"][1])), " dog"
    first = next(iter(PROBLEM["thought_targets"][0]))
    rows = [traced([first, possible], [first, impossible], right=[[first, possible]])]
    facts = trace_facts([PROBLEM], problems_with_targets([PROBLEM], rows), rows)
    assert facts["target_share_on_possible"] == pytest.approx(0.75)
    assert (facts["whole_chains"], facts["right_samples"]) == pytest.approx((2 / 3, 1 / 3))
