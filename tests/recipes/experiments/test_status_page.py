"""The status page and the terminal."""

import io

import pytest
from hostile_text import HOSTILE, assert_harmless
from rich.console import Console

from hf_evidenceflow.recipes.experiments.progress import Progress, RunProgress
from hf_evidenceflow.recipes.experiments.status_page import status_html
from hf_evidenceflow.recipes.experiments.terminal import Terminal, progress_table


@pytest.fixture
def progress():
    rows = [
        RunProgress("arm=none,seed=0", "finished", values={"step": 40, "eval_loss": 2.25}, updated=900.0),
        RunProgress("arm=mse,seed=0", "running", values={"step": 7, "loss": 3.5}, max_steps=40, updated=985.0),
        RunProgress("arm=mse,seed=1", "failed", note="exit code 3", updated=400.0),
        RunProgress("arm=mse,seed=2", "left"),
    ]
    return Progress("study", ["eval_loss"], rows, time=1000.0)


def test_the_counts_add_up_to_the_total(progress):
    assert progress.summary == "4 total, 1 finished, 1 running, 1 left, 1 failed"


def test_no_text_of_a_run_can_carry_a_script():
    hostile = iter(HOSTILE)
    row = RunProgress(next(hostile), "failed", note=next(hostile), values={})
    page = status_html(Progress(next(hostile), [next(hostile)], [row], time=0.0), 5)
    assert_harmless(page, shown=4)


def test_the_page_reloads_only_while_the_runner_is_at_work(progress):
    assert '<meta http-equiv="refresh" content="5">' in status_html(progress, 5)
    assert 'http-equiv="refresh"' not in status_html(progress, None)


def test_the_page_loads_nothing_from_elsewhere(progress):
    page = status_html(progress, 5)
    assert not any(word in page for word in ("http://", "https://", "src=", "@import"))


def test_each_run_shows_its_latest_numbers(progress):
    page = status_html(progress, 5)
    for text in ("7/40", "3.5", "2.25", "15 s ago", "2 min ago"):
        assert f">{text}<" in page


def test_running_runs_come_first(progress):
    page = status_html(progress, 5)
    assert page.index("arm=mse,<wbr>seed=0") < page.index("arm=none,<wbr>seed=0")


def test_without_a_terminal_the_counts_are_one_plain_line_when_they_change(progress):
    output = io.StringIO()
    with Terminal(Console(file=output, width=200)) as terminal:
        terminal.update(progress)
        terminal.update(progress)
    assert output.getvalue().count("4 total") == 1


def test_the_table_fits_the_terminal(progress):
    assert progress_table(progress, height=8).row_count == 3
