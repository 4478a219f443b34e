import sys

import pytest
from repository import ROOT

from hf_evidenceflow.first_line import say_loading


@pytest.mark.parametrize(
    ("script", "terminal", "rank", "said"),
    [
        (ROOT / "recipes" / "hrpo_gsm8k.py", True, "0", "hrpo_gsm8k: importing torch, transformers and TRL ...\n"),
        (ROOT / "recipes" / "hrpo_gsm8k.py", False, "0", ""),
        (ROOT / "recipes" / "hrpo_gsm8k.py", True, "1", ""),
        (ROOT / "docs" / "run_commands.py", True, "0", ""),
    ],
    ids=["recipe", "log", "other process", "other script"],
)
def test_the_first_process_of_a_recipe_says_on_a_terminal_what_it_waits_for(
    capsys, monkeypatch, script, terminal, rank, said
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("RANK", rank)
    say_loading(str(script))
    assert capsys.readouterr() == ("", said)
