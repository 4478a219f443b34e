"""Experiments whose runs need no new interpreters."""

import subprocess
from types import SimpleNamespace

import pytest
from launching import ForkedScript

from hf_evidenceflow.recipes.experiments import launcher


@pytest.fixture
def forked_runs(monkeypatch):
    """The runs of an experiment are forked from a process that has imported TRL, which takes seconds."""
    names = {"DEVNULL": subprocess.DEVNULL, "STDOUT": subprocess.STDOUT, "Popen": ForkedScript}
    monkeypatch.setattr(launcher, "subprocess", SimpleNamespace(**names))
