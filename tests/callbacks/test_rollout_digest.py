from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from hf_evidenceflow.callbacks import rollout_digest
from hf_evidenceflow.callbacks.rollout_digest import RolloutDigest, peak_memory


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
    """Begun at step 10 of 100 (a resumed run), and 5 steps of 40 s later, of which 25 s were rollouts."""
    trainer = SimpleNamespace(rollout_seconds=7.0)
    digest = RolloutDigest(trainer)
    digest.on_train_begin(ARGS, TrainerState(global_step=10, max_steps=100), TrainerControl())
    clock.time += 5 * 40
    trainer.rollout_seconds += 5 * 25
    return digest


def test_costs_are_those_since_the_resume(digest):
    assert digest.costs(15) == {"seconds_per_step": 40, "rollout_seconds_per_step": 25, "peak_memory_gb": 2.34}


def test_the_line_says_what_a_user_must_know_first(digest):
    assert digest.line(TrainerState(global_step=15, max_steps=100), LOGS) == (
        "Step 15 of 100: 40 s a step (rollout 25 s), peak memory 2.3 GB, 0:56:40 left. Reward 0.25, 12% without a "
        "readable answer, 50% of groups without signal, 0% cut off."
    )


def test_what_is_not_known_is_left_out(digest, monkeypatch):
    monkeypatch.setattr(rollout_digest, "peak_memory", lambda: None)
    line = digest.line(TrainerState(global_step=15, max_steps=100), {"reward": 1.0})
    assert line.endswith("(rollout 25 s), 0:56:40 left. Reward 1.")


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
    assert "32 completions of at most 160 tokens, in groups of 8; 100 steps" in capsys.readouterr().out


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory() < 1e12
