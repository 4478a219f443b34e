"""The versions that the package is tested with, and an error that names the remedy outside of them."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet


# As in setup.cfg; the lower ends are those of constraints-lowest.txt
REQUIREMENTS = {
    "torch": ">=2.10",
    "transformers": ">=5.21,<6",
    "trl": ">=1.16,<2",
    "peft": ">=0.21,<1",
    "accelerate": ">=1.14,<2",
}


def check_versions(requirements: dict[str, str] = REQUIREMENTS) -> None:
    """
    Compare the installed versions with the supported ones by their metadata; nothing is imported.

    Raises:
        ImportError: If a package is missing or of another version; the message says how to get the right one.
    """
    for name, wanted in requirements.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = None
        if found is None or not SpecifierSet(wanted).contains(found, prereleases=True):
            state = "is not installed" if found is None else f"is {found}"
            raise ImportError(
                f"hf_evidenceflow needs {name}{wanted}, but {name} {state}. Run `pip install '{name}{wanted}'`, or "
                "take the tested versions of the project's constraints.txt."
            )
