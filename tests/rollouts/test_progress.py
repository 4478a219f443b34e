import sys
from types import SimpleNamespace

import pytest
import torch

from hf_evidenceflow.rollouts import progress
from hf_evidenceflow.rollouts.progress import RolloutProgress, StockLoopProgress


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now.time)
    return now


def test_outside_of_a_terminal_a_line_comes_every_half_minute(clock, capsys):
    with RolloutProgress(8, enabled=True) as shown:
        for seconds in range(0, 70, 10):
            clock.time = seconds
            shown.update(seconds // 20, 100 * seconds)
    assert capsys.readouterr().err.splitlines() == [
        "Rollout: 1 of 8 rows have ended, 3,000 tokens, 100 a second",
        "Rollout: 3 of 8 rows have ended, 6,000 tokens, 100 a second",
    ]


def test_switched_off_nothing_is_shown(clock, capsys):
    with RolloutProgress(8, enabled=False) as shown:
        clock.time = 1000
        shown.update(3, 7)
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_there_is_a_bar_and_no_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.logging, "_tqdm_active", True)  # which other tests switch off
    with RolloutProgress(8, enabled=True) as shown:
        clock.time = 1000
        shown.update(3, 7)
        assert not shown.bar.disable and shown.bar.n == 3 and not shown.lines


def test_the_stock_loop_shows_its_progress_and_goes_on(clock, capsys):
    with StockLoopProgress([1]) as watcher:
        for seconds, tokens in ((0, [5, 5, 5]), (20, [5, 1, 5]), (40, [5, 0, 5])):
            clock.time = seconds
            assert watcher(torch.tensor(tokens)[:, None], None).tolist() == [False] * 3
    assert capsys.readouterr().err == "Rollout: 1 of 3 rows have ended, 8 tokens, 0 a second\n"
