"""SIGTERM: in training a checkpoint is saved at the next step, elsewhere the run ends at once; exit code 143.

transformers' `enable_jit_checkpoint` does not do: it acts seconds after the signal, writes into the final folder,
knows neither the other ranks nor an exit code, and the code behind `train()` goes on as if training were done. Remove
when it does all that.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


# A launcher forwards what its process group has got already; and when it dies, Linux tells its child for each thread
SAME_SECONDS = 2.0
EXIT_CODE = 128 + signal.SIGTERM  # what a shell shows for a process that SIGTERM ended


class Terminated(SystemExit):
    """The run was ended by SIGTERM; exit code 143."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class _State:
    requested = False  # a SIGTERM came
    first = 0.0  # when, in seconds of the monotonic clock
    deferring = False  # a trainer will act on it
    ignoring = False  # the run's end is being noted


_state = _State()


@contextmanager
def handle_sigterm() -> Iterator[None]:
    """
    Turn SIGTERM into [`Terminated`] inside the `with` block, at once or, while a trainer defers it, at its next step.

    A second signal ends the block at once in any case, unless it comes within `SAME_SECONDS` of the first. Outside
    the main thread, and inside another such block, nothing is changed.
    """
    handled = signal.getsignal(signal.SIGTERM) is _on_sigterm
    if handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.requested = _state.deferring = _state.ignoring = False
    earlier = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        if _state.requested:
            _pass_over_repeats(earlier)
        else:
            signal.signal(signal.SIGTERM, earlier)
        _state.requested = False


def _pass_over_repeats(earlier) -> None:
    """Behind the block, the signal may still come again: it must not change the exit code of a run that has saved."""

    def on_repeat(number, frame):
        if time.monotonic() - _state.first > SAME_SECONDS:
            signal.signal(signal.SIGTERM, earlier)
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_repeat)
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # Python ends with the default handler otherwise


def _on_sigterm(number, frame):
    if _state.ignoring:
        return
    now = time.monotonic()
    first, _state.requested = not _state.requested, True
    if first:
        _state.first = now
    elif now - _state.first <= SAME_SECONDS:
        return
    if not (first and _state.deferring):
        raise Terminated
    if os.environ.get("RANK", "0") == "0":
        # `print` may be what the signal interrupted
        os.write(2, b"\nSIGTERM: saving a checkpoint at the end of this step (a second one ends the run at once).\n")


@contextmanager
def deferred() -> Iterator[None]:
    """Inside the `with` block the first SIGTERM is only noted, for a trainer that asks for it at each step."""
    _state.deferring = True
    try:
        yield
    finally:
        _state.deferring = False


@contextmanager
def ignored() -> Iterator[None]:
    """Inside the `with` block, which should be short, SIGTERM does nothing: the run is ending anyway."""
    _state.ignoring = True
    try:
        yield
    finally:
        _state.ignoring = False


def is_requested() -> bool:
    """Whether this process got a SIGTERM that a trainer has to act on."""
    return _state.requested
