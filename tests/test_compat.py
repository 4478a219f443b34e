"""The private names that we lean on: all in the table, and as the table has them."""

import ast
import functools
from dataclasses import replace

import pytest
from repository import ROOT
from transformers import Trainer

from hf_evidenceflow import compat
from hf_evidenceflow.compat import EXTENSION_POINTS, SEAMS, broken_seams, private_names, resolve


UPSTREAM = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "lm_eval",
)
# Private names of the standard library
STANDARD = {"_actions", "_StoreFalseAction", "_asdict", "_replace", "_exit"}
# Attributes of ours, on classes that are none of theirs
OURS = {"_config", "_model", "_parameters"}
TABLE = (*SEAMS, *EXTENSION_POINTS)
FILES = [
    path
    for folder in ("hf_evidenceflow", "patches", "recipes")
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "compat.py"
]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(tree):
    """Each name that code defines, reads or holds as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def own_names(tree):
    """Names that code defines: functions, classes, class attributes, and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_the_installed_libraries_have_each_private_name_as_we_use_it():
    assert broken_seams() == []


@pytest.mark.parametrize(
    "change", [lambda self, model: None, lambda self, trial, model: None, lambda self, model, trial, commit: None]
)
def test_a_changed_signature_is_reported_by_the_name_of_the_seam(change, monkeypatch):
    monkeypatch.setattr(Trainer, "_save_checkpoint", change)
    (problem,) = broken_seams(seam for seam in SEAMS if seam.owner == compat.TRAINER)
    assert problem.startswith("`transformers.Trainer._save_checkpoint` (used in run_folder.atomic_checkpoint; ")
    assert problem.endswith("not (model, trial).")


@pytest.mark.parametrize("name", ["_tr_loss", "_run_epoch", "_eos_token_tensor"])
def test_a_name_that_is_gone_is_reported(name):
    (seam,) = (seam for seam in SEAMS if seam.name == name)
    (problem,) = broken_seams([replace(seam, name=f"{name}_of_old")])
    assert f"{name}_of_old` (used in {seam.used_in}; " in problem and problem.endswith("is gone.")


def test_fewer_than_fifty_private_names_are_leaned_on():
    assert len(SEAMS) == len({(seam.owner, seam.name) for seam in SEAMS}) < 50


@pytest.mark.parametrize("seam", TABLE, ids=lambda seam: f"{seam.owner}.{seam.name}")
def test_each_row_names_a_module_that_uses_it(seam):
    path = ROOT / "hf_evidenceflow" / (seam.used_in.replace(".", "/") + ".py")
    assert seam.name in set(names_in(tree_of(path)))
    assert seam.why and seam.remove_when and seam.since


def test_no_private_name_of_a_table_s_owner_is_used_that_the_table_lacks():
    upstream = set().union(*(private_names(resolve(owner)) for owner in {seam.owner for seam in TABLE}))
    lacking = upstream - OURS - {seam.name for seam in TABLE}
    used = {name: path.name for path in FILES for name in names_in(tree_of(path)) if name in lacking}
    assert used == {}


def test_no_private_attribute_is_read_that_is_neither_ours_nor_in_the_table():
    trees = {path: tree_of(path) for path in FILES}
    known = STANDARD.union({seam.name for seam in TABLE}, *map(own_names, trees.values()))
    attributes = {
        node.attr: f"{path.name}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and is_private(node.attr)
    }
    assert {name: place for name, place in attributes.items() if name not in known} == {}


def test_no_private_name_is_imported_from_a_library():
    found = []
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in UPSTREAM:
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            else:
                continue
            found += [f"{path.name}: {name}" for name in names if is_private(name)]
    assert found == []
