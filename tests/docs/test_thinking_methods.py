"""The page of the thinking methods shows the table that the code has."""

import re

from repository import ROOT

from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


ROW = re.compile(r"^\| `(\w+)` \| `?(\w+)`? \| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \| .*? \|$", re.MULTILINE)


def test_the_table_of_methods_is_that_of_the_code():
    rows = ROW.findall((ROOT / "docs" / "thinking_methods.md").read_text())
    shown = {mode: parts for mode, *parts in rows}
    assert shown == {
        mode: [method.source or "none", method.mixer, method.schedule, method.noise, method.token_policy]
        for mode, method in THINKING_METHODS.items()
    }
