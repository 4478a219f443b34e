"""benchmarks/chaos.py: five kills of a real training run, and that its comparison sees what differs."""

import json
import subprocess
import sys

import pytest
import torch
from repository import BENCHMARKS


@pytest.fixture
def differences(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from chaos_compare import differences

    return lambda found, expected: differences(found, expected, ("/work/stopped", "/work/whole"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos")
    runs = ["clm-fork-1-2", "clm-fork-1-8"]  # five kills: in saving, rotation (twice), evaluation, at a random moment
    command = [sys.executable, str(BENCHMARKS / "chaos.py"), "--work", str(folder / "work"), "--only", *runs]
    command += ["--output", str(folder / "chaos.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert (folder / "chaos.json").exists(), done.stdout + done.stderr
    return done.returncode, json.loads((folder / "chaos.json").read_text()), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, and Linux's adoption of orphans")
def test_five_kills_in_chosen_phases_leave_the_run_that_nothing_stopped(results):
    code, data, printed = results
    stops = [(stop["phase"], stop["signal"]) for run in data["cases"].values() for stop in run["stops"]]
    assert sorted(stops) == [("evaluation", 9), ("random", 9), ("rotation", 9), ("rotation", 9), ("save", 9)], printed
    assert code == 0 and not any(run["problems"] for run in data["cases"].values()), printed


def test_equal_runs_in_other_folders_at_other_times_do_not_differ(differences):
    found = {"run": "/work/stopped/checkpoint-3", "train_seconds": 3.0, "weights": torch.ones(2, 3), "state": (1, "a")}
    expected = {
        "run": "/work/whole/checkpoint-3",
        "train_seconds": 5.0,
        "weights": torch.ones(2, 3),
        "state": (1, "a"),
    }
    assert differences(found, expected) == []


@pytest.mark.parametrize(
    "found, where",
    [
        ({"weights": torch.ones(3).index_fill(0, torch.tensor(1), 1.0000001)}, "/weights: differs by 1.19e-07"),
        ({"weights": torch.ones(3, dtype=torch.double)}, "/weights: torch.float64"),
        ({"log": [{"loss": 2.5, "step": 2}, {"loss": 1.5, "step": 5}]}, "/log[1, step 5]/loss: 1.5, expected 1.25"),
        ({"log": [{"loss": 2.5, "step": 2}]}, "/log: 1 entries, 2 expected"),
        ({"steps": None}, "/steps: None, expected 7"),
        ({"further": 1}, "/further: only in the stopped run"),
    ],
)
def test_what_differs_is_named_with_field_step_and_values(differences, found, where):
    expected = {
        "weights": torch.ones(3),
        "log": [{"loss": 2.5, "step": 2}, {"loss": 1.25, "step": 5}],
        "steps": 7,
    }
    (line,) = differences(expected | found, expected)
    assert line.startswith(where)
