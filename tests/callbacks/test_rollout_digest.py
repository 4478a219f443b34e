from collections import Counter
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from hf_evidenceflow.callbacks import rollout_digest
from hf_evidenceflow.callbacks.rollout_digest import RolloutDigest


ARGS = SimpleNamespace(generation_batch_size=32, max_completion_length=160, num_generations=8)
LOGS = {"reward": 0.25, "unparsable": 0.12, "frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.0}


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(rollout_digest.time, "perf_counter", lambda: now.time)
    monkeypatch.setattr(rollout_digest, "peak_memory", lambda: 2_340_000_000)
    return now


@pytest.fixture
def digest(clock):
    """Begun at step 10 of 100 (a resumed run), 5 steps of 40 s later: 25 of rollout, 1 of scoring, 13 of update."""
    check = SimpleNamespace(description="A step takes 3 GB at most.")
    trainer = SimpleNamespace(phase_seconds=Counter(rollout=7.0), memory_check=check)
    digest = RolloutDigest(trainer)
    digest.on_train_begin(ARGS, TrainerState(global_step=10, max_steps=100), TrainerControl())
    clock.time += 5 * 40
    trainer.phase_seconds.update(rollout=5 * 25, scoring=5, update=5 * 13)
    return digest


def test_costs_are_those_since_the_resume(digest):
    phases = {"rollout_seconds_per_step": 25, "scoring_seconds_per_step": 1, "update_seconds_per_step": 13}
    assert digest.costs(15) == {"seconds_per_step": 40, **phases, "peak_memory_gb": 2.34}


def test_the_line_says_what_a_user_must_know_first(digest):
    assert digest.line(TrainerState(global_step=15, max_steps=100), LOGS) == (
        "Step 15 of 100: 40 s a step (rollout 25 s, scoring 1 s, update 13 s), peak memory 2.3 GB, 0:56:40 left. "
        "Reward 0.25, 12% without a readable answer, 50% of groups without signal, 0% cut off."
    )


def test_what_is_not_known_is_left_out(digest, monkeypatch):
    monkeypatch.setattr(rollout_digest, "peak_memory", lambda: None)
    line = digest.line(TrainerState(global_step=15, max_steps=100), {"reward": 1.0})
    assert line.endswith("(rollout 25 s, scoring 1 s, update 13 s), 0:56:40 left. Reward 1.")


@pytest.mark.parametrize(
    ("first", "logs", "printed"), [(True, LOGS, 1), (True, {"train_loss": 1}, 0), (False, LOGS, 0)]
)
def test_the_main_process_prints_logs_of_rollouts(digest, capsys, first, logs, printed):
    state = TrainerState(global_step=15, max_steps=100, is_world_process_zero=first)
    capsys.readouterr()
    digest.on_log(ARGS, state, TrainerControl(), logs=logs)
    assert capsys.readouterr().out.count("Step 15 of 100") == printed


def test_the_first_rollout_is_announced(digest, capsys):
    digest.on_train_begin(ARGS, TrainerState(max_steps=100), TrainerControl())
    out = capsys.readouterr().out
    assert "32 completions of at most 160 tokens, in groups of 8; 100 steps" in out
    assert "A step takes 3 GB at most." in out


def test_the_end_of_a_run_has_the_means_of_its_logs(digest, capsys):
    state = TrainerState(max_steps=15, is_world_process_zero=True)
    for state.global_step, reward, unread in ((11, 0.1, 0.5), (15, 0.35, 0.25)):
        digest.on_log(ARGS, state, TrainerControl(), logs={"reward": reward, "unparsable": unread})
    capsys.readouterr()
    digest.on_train_end(ARGS, state, TrainerControl())
    assert capsys.readouterr().out == (
        "5 steps in 0:03:20: 40 s a step (rollout 25 s, scoring 1 s, update 13 s), peak memory 2.3 GB. On average: "
        "Reward 0.3, 30% without a readable answer.\n"
    )
    assert digest.costs(15)["unparsable"] == pytest.approx(0.3)


@pytest.mark.parametrize(("step", "logs"), [(1, True), (2, False)])
def test_the_first_step_is_logged(digest, step, logs):
    control = TrainerControl()
    digest.on_step_end(ARGS, TrainerState(global_step=step), control)
    assert control.should_log == logs
