import ast
import configparser
import re
import sys

import pytest
from repository import ROOT

from hf_evidenceflow import dependencies
from hf_evidenceflow.dependencies import REQUIREMENTS, check_versions


def test_the_installed_versions_are_supported():
    check_versions()


@pytest.mark.parametrize(
    "found, words",
    [
        ("5.20.2", "needs transformers>=5.21,<6, but transformers is 5.20.2.*pip install 'transformers>=5.21,<6'"),
        ("6.0.0", "but transformers is 6.0.0"),
        (None, "but transformers is not installed"),
    ],
)
def test_a_version_outside_the_window_is_an_error_with_the_remedy(monkeypatch, found, words):
    def version(name):
        if found is None:
            raise dependencies.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(dependencies, "version", version)
    with pytest.raises(ImportError, match=words):
        check_versions({"transformers": REQUIREMENTS["transformers"]})


@pytest.mark.parametrize("found", ["2.10.0+cu128", "2.14.0.dev20260901"])
def test_local_builds_and_nightlies_are_supported(monkeypatch, found):
    monkeypatch.setattr(dependencies, "version", lambda name: found)
    check_versions({"torch": REQUIREMENTS["torch"]})


def setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def names(lines):
    """The modules of requirements; those of the package's own extras included."""
    extras, found = setup_cfg()["options.extras_require"], set()
    for line in lines.split():
        own = re.match(r"hf-evidenceflow\[(.*)\]", line)
        nested = [names(extras[extra]) for extra in own[1].split(",")] if own else [{re.match(r"[\w-]+", line)[0]}]
        found = found.union(*nested)
    return {{"PyYAML": "yaml", "math-verify": "math_verify", "lm-eval": "lm_eval"}.get(name, name) for name in found}


def imported(paths, everywhere=False):
    """The modules of others that files import, at their top level or in their functions too."""
    found = set()
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    return {name.split(".")[0] for name in found} - {"hf_evidenceflow", *sys.stdlib_module_names}


def library(folder="hf_evidenceflow"):
    """Modules but for those that other people's tools import."""
    plugins = ROOT / "hf_evidenceflow" / "integrations" / "vllm"
    harnesses = ("lm_eval.py", "lighteval.py", "gsm8k_lighteval.py")
    modules = (ROOT / folder).rglob("*.py")
    return [path for path in modules if path.name not in harnesses and plugins not in path.parents]


def test_setup_cfg_states_the_same_window():
    stated = setup_cfg()["options"]["install_requires"].split()
    assert {f"{name}{wanted}" for name, wanted in REQUIREMENTS.items()} <= set(stated)


def test_the_core_dependencies_are_what_the_library_imports_unconditionally():
    core = names(setup_cfg()["options"]["install_requires"])
    assert imported(library()) | imported(library("patches")) <= core
    assert core <= imported(library(), everywhere=True)


def test_what_functions_of_the_library_import_is_in_an_extra():
    extras = set().union(*(names(lines) for lines in setup_cfg()["options.extras_require"].values()))
    assert imported(library(), everywhere=True) <= extras | names(setup_cfg()["options"]["install_requires"])


@pytest.mark.parametrize("folder, extra", [("", "recipes"), ("course", "course")])
def test_the_recipes_import_what_their_extra_has(folder, extra):
    setup = setup_cfg()
    allowed = names(setup["options"]["install_requires"]) | names(setup["options.extras_require"][extra])
    paths = [path for path in library(f"recipes/{folder}") if folder or "course" not in path.parts]
    assert len(paths) > 20
    assert imported(paths, everywhere=True) <= allowed


def test_the_lowest_constraints_are_the_lower_ends():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line)
    for name, wanted in REQUIREMENTS.items():
        if name != "torch":  # of which only one version has a build for CPU here
            lowest = wanted.split(",")[0].removeprefix(">=")
            assert pinned[name].startswith(f"{lowest}.")
