"""The page of the thinking methods shows the table and the sizes that the code has."""

import ast
import re

import pytest
from repository import ROOT

from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS


PAGE = (ROOT / "docs" / "thinking_methods.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| `?(\w+)`? \| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \| .*? \|$", re.MULTILINE)
_GATES = ["thinking_residual.mix_thinking_state", "thinking_residual.ThinkingGate", "thinking_residual.ThinkingLambda"]
_PROJECTION = ["thinking_residual.ThinkingProjection", "thinking_residual.normalize_state"]
# What would go if the method, and those that share a part with it, went
OWN_CODE = {
    "projection": [*_GATES, *_PROJECTION],
    "embedding": _GATES,
    "soft": ["thinking_residual.soft_state"],
    "swi": ["thinking_schedules.EntropyRule"],
    "later": [
        "thinking_sources.alignment",
        "thinking_sources.aligned_state",
        "thinking_sources.kept_alignment",
        "thinking_sources._fingerprint",
        "modeling_thinking.ThinkingCausalLMMixin.thinking_source",
    ],
    "soft_tokens": [
        "thinking_density.gaussian_log_density",
        "row_draws.RowDraws.normal",
        "thinking_noise.StateNoise.__call__",
        "modeling_thinking.ThinkingCausalLMMixin.thinking_noise_scale",
    ],
    "gumbel": [
        "thinking_density.gumbel_log_density",
        "row_draws.RowDraws.gumbel",
        "thinking_noise.StateNoise._gumbel",
    ],
    "tarpo": [
        "thinking_schedules.HeadRule",
        "thinking_density.choice_log_density",
        "thinking_residual.ThinkingHead",
        "thinking_state.ThinkingState._decide",
    ],
    "switch": ["thinking_schedules.BoundaryRule"],
    "coconut": [],
    "codi": _PROJECTION,
    "pause": [],
}


def code_lines(name):
    """Lines of a function or class that are neither blank nor docstring."""
    module, *path = name.split(".")
    text = (ROOT / "hf_evidenceflow" / "models" / "thinking" / f"{module}.py").read_text()
    node = ast.parse(text)
    for part in path:
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    own = set(range(node.lineno, node.end_lineno + 1))
    for child in ast.walk(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(child):
            own -= set(range(child.body[0].lineno, child.body[0].end_lineno + 1))
    lines = text.splitlines()
    return sum(bool(lines[number - 1].strip()) for number in own)


def test_the_table_of_methods_is_that_of_the_code():
    shown = {mode: parts for mode, *parts in ROW.findall(PAGE)}
    assert shown == {
        mode: [method.source or "none", method.mixer, method.schedule, method.noise, method.token_policy]
        for mode, method in THINKING_METHODS.items()
    }


@pytest.mark.parametrize("mode", [mode for mode in THINKING_METHODS if mode != "none"])
def test_a_method_costs_the_lines_that_the_page_says_and_at_most_60(mode):
    lines = sum(map(code_lines, OWN_CODE[mode]))
    shown = re.search(rf"^\| `{mode}` \| (\d+) \|", PAGE, re.MULTILINE)
    assert shown is not None and int(shown[1]) == lines <= 60
