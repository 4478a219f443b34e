"""Training time without evaluation, logging and saving, kept across resumes."""

import time
from contextlib import contextmanager

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingClock(TrainerCallback, ExportableState):
    """
    Counts the `seconds` of training, up to the last pause. The checkpoint holds them, so that a resumed run goes on
    counting.

    Example:

    ```python
    >>> clock = TrainingClock()
    >>> trainer.add_callback(clock)
    >>> with clock.paused():
    ...     trainer.evaluate()
    ```
    """

    def __init__(self):
        self.seconds = 0.0
        self._started = None

    def state(self) -> dict:
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed state holds the checkpoint's callbacks, a fresh one this one's own
        self.seconds = state.stateful_callbacks[type(self).__name__]["attributes"]["seconds"]
        self._started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self._stop()

    @contextmanager
    def paused(self):
        """Does not count what happens inside the `with` block."""
        running = self._started is not None
        self._stop()
        try:
            yield
        finally:
            if running:
                self._started = time.perf_counter()

    def _stop(self) -> None:
        if self._started is None:
            return
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what was launched is training still
        self.seconds += time.perf_counter() - self._started
        self._started = None
