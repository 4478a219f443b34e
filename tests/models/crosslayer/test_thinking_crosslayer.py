"""Thinking on top of a cross-layer Llama: the self-check of families, and the code for the Hub."""

import ast
from collections import Counter

import pytest
from tiny_models import TINY

from hf_evidenceflow import CrossLayerLlamaConfig
from hf_evidenceflow.models.family_check import failing_check
from hf_evidenceflow.models.thinking.families import thinking_family
from hf_evidenceflow.models.thinking.hub_source import hub_source


@pytest.mark.parametrize("variant", ["v2m3", "hyper_connections", "mhc", "block_attention"])
def test_a_variant_can_think(variant):
    assert failing_check(CrossLayerLlamaConfig(**TINY, variant=variant)) is None


def test_its_code_defines_no_name_twice():
    names = Counter()
    for node in ast.parse(hub_source(thinking_family("crosslayer_llama").causal_lm)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] += 1
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    assert [name for name, count in names.items() if count > 1] == []
