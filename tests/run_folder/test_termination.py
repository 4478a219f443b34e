"""SIGTERM that comes again when the run has already ended itself."""

import signal

import pytest

from hf_evidenceflow.run_folder import termination
from hf_evidenceflow.run_folder.termination import Terminated, handle_sigterm


@pytest.fixture
def heard():
    """The signals that reach the handler from before the run."""
    signals = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, earlier)


def terminate():
    with pytest.raises(Terminated), handle_sigterm():
        signal.raise_signal(signal.SIGTERM)


def test_a_repeat_right_behind_the_run_is_passed_over(heard):
    terminate()
    signal.raise_signal(signal.SIGTERM)
    assert heard == []


def test_a_later_one_reaches_who_handled_it_before(heard, monkeypatch):
    terminate()
    monkeypatch.setattr(termination, "SAME_SECONDS", 0)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2


def test_without_a_signal_the_earlier_handler_is_back(heard):
    with handle_sigterm():
        pass
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_inside_another_block_the_outer_one_passes_over_a_repeat(heard):
    with pytest.raises(Terminated), handle_sigterm(), handle_sigterm():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert heard == []
