import configparser

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


def test_setup_cfg_states_the_same_window():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    stated = setup["options"]["install_requires"].split()
    assert {f"{name}{wanted}" for name, wanted in REQUIREMENTS.items()} <= set(stated)


def test_the_lowest_constraints_are_the_lower_ends():
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints-lowest.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line)
    for name, wanted in REQUIREMENTS.items():
        if name != "torch":  # of which only one version has a build for CPU here
            lowest = wanted.split(",")[0].removeprefix(">=")
            assert pinned[name].startswith(f"{lowest}.")
