import io

import pytest
from rich.console import Console

from hf_evidenceflow.report.samples import samples_table


def rendered(*args, **kwargs):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(samples_table(*args, **kwargs))
    return console.export_text()


def test_brackets_of_a_completion_are_no_markup():
    assert "[bold]5[/oops]" in rendered(["2 + 3"], ["[bold]5[/oops]"])


def test_terminal_escapes_of_a_completion_do_not_reach_the_terminal():
    assert "\x1b" not in rendered(["2 + 3"], ["\x1b[2J5"])


def test_of_a_long_prompt_the_end_is_shown():
    text = rendered(["first " + "x" * 500 + " last"], ["5"], golds=["5"], extracted=[None], rewards=[0.0])
    assert "last" in text and "first" not in text and "none" in text


def test_columns_of_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="'completion': 2"):
        samples_table(["a"], ["b", "c"])
