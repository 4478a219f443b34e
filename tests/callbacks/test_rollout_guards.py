import logging

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_evidenceflow.callbacks import rollout_guards
from hf_evidenceflow.callbacks.rollout_guards import PATIENCE, RolloutGuard


GOOD = {"reward": 0.4, "reward_std": 0.2, "frac_reward_zero_std": 0.1, "completions/clipped_ratio": 0.0}


@pytest.fixture
def warnings_of(caplog, tmp_path, monkeypatch):
    # accelerate's adapter asks for the state of a run
    monkeypatch.setattr(rollout_guards, "logger", logging.getLogger("guard"))
    args = TrainingArguments(str(tmp_path), use_cpu=True)

    def warn(*entries):
        guard = RolloutGuard()
        caplog.clear()
        for entry in entries:
            guard.on_log(args, TrainerState(), TrainerControl(), logs=entry)
        return [record.getMessage() for record in caplog.records]

    return warn


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"reward": 0.0, "reward_std": 0.0}, "all rewards are 0"),
        ({"frac_reward_zero_std": 0.95}, "95% of the groups"),
        ({"completions/clipped_ratio": 0.6}, "60% of the completions are cut off"),
        ({"unparsable": 0.7}, "70% of the completions have no answer"),
    ],
)
def test_a_problem_that_stays_is_warned_of_once(warnings_of, bad, words):
    found = warnings_of(*[GOOD | bad] * (PATIENCE + 2))
    assert len(found) == 1 and words in found[0]


def test_a_problem_that_passes_is_not_warned_of(warnings_of):
    bad = GOOD | {"completions/clipped_ratio": 0.9}
    assert warnings_of(bad, bad, GOOD, bad, bad) == []


def test_good_rollouts_and_other_entries_are_not_warned_of(warnings_of):
    assert warnings_of(*[GOOD, {"train_runtime": 3.0}] * 4) == []
