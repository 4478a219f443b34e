"""Seconds of an online training by phase."""

import time
from collections import Counter
from contextlib import contextmanager


class PhaseClockMixin:
    """
    Put before [`~trl.GRPOTrainer`].

    Attributes:
        phase_seconds (`Counter[str]`):
            Seconds that training has spent on the `"rollout"` (with tools), on `"scoring"` (rewards, log-probabilities
            of the reference and of the old policy) and on the `"update"`.
    """

    _nested_seconds = 0.0

    def __init__(self, *args, **kwargs):
        self.phase_seconds: Counter[str] = Counter()
        super().__init__(*args, **kwargs)

    @contextmanager
    def _phase(self, name):
        """Adds what the block takes, without phases inside it."""
        around, self._nested_seconds = self._nested_seconds, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            if self.model.training:
                self.phase_seconds[name] += seconds - self._nested_seconds
            self._nested_seconds = around + seconds

    def _generate(self, prompts):
        """Differs from GRPOTrainer in the clock."""
        with self._phase("rollout"):
            return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs):
        """Differs from GRPOTrainer in the clock."""
        with self._phase("scoring"):
            return super()._generate_and_score_completions(inputs)

    def training_step(self, *args, **kwargs):
        """Differs from GRPOTrainer in the clock."""
        with self._phase("update"):
            return super().training_step(*args, **kwargs)
