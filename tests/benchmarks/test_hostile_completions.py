"""A thousand hostile completions through the graders and the text handling of evaluations: none raises."""

import importlib
import sys

import pytest
from repository import BENCHMARKS


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("hostile_completions")
        for name in ("hostile_completions", "hostile_texts"):
            del sys.modules[name]


def test_no_completion_raises_or_takes_long(benchmark, tmp_path):
    tally = benchmark.run_chunk(seed=1, chunk=0, count=1000, verify_every=500, log_every=10, folder=tmp_path)
    assert (tally.errors, tally.count, tally.logged) == ([], 1000, 100)
    assert tally.slowest[0] < 1, tally.slowest


def test_an_error_is_reported_with_its_place(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "grade_all", lambda completion: 1 / 0)
    (error,) = benchmark.run_chunk(3, 4, count=1, verify_every=2, log_every=1, folder=tmp_path).errors
    assert error == "seed 3, chunk 4, number 0: ZeroDivisionError: division by zero"
