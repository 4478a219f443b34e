from types import SimpleNamespace

import pytest

from hf_evidenceflow.trainers import phase_clock
from hf_evidenceflow.trainers.phase_clock import PhaseClockMixin


class Trainer:
    """Each phase takes its seconds, and calls the next inside of it."""

    def __init__(self, now):
        self.now, self.model = now, SimpleNamespace(training=True)

    def training_step(self):
        self.now.time += 7
        self._generate_and_score_completions(None)
        self.now.time += 4

    def _generate_and_score_completions(self, inputs):
        self.now.time += 2
        self._generate(None)
        self._generate(None)

    def _generate(self, prompts):
        self.now.time += 5


class Clocked(PhaseClockMixin, Trainer):
    pass


@pytest.fixture
def trainer(monkeypatch):
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(phase_clock.time, "perf_counter", lambda: now.time)
    return Clocked(now)


def test_each_phase_has_the_seconds_that_no_inner_one_has(trainer):
    trainer.training_step()
    trainer.training_step()
    assert trainer.phase_seconds == {"update": 22, "scoring": 4, "rollout": 20}


def test_evaluation_is_no_phase_of_training(trainer):
    trainer.model.training = False
    trainer._generate_and_score_completions(None)
    assert not trainer.phase_seconds
