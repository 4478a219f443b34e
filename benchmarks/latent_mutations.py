"""
Plants the bugs of `latent_mutations.yaml`, one at a time, in a copy of the code of latent training, and looks whether
the tests that should find it do.

    nice -n 5 python benchmarks/latent_mutations.py --slow --output results/latent/mutations.md

A mutation is killed if one of its tests fails, and has survived if all of them pass; before that they have to pass
without it. `--names` runs those whose name contains one of the words, `--slow` also those with slow tests.
"""

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from transformers import Trainer  # noqa: F401
from trl import GRPOTrainer, SFTTrainer  # noqa: F401


# What takes long to import is in this process, the package in forks of it, which see the copy
PACKAGE = "hf_evidenceflow"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """In `file` of the package `old` becomes `new`; `tests`, those that match `only`, should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    only: str = ""
    slow: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """Those of pytest."""
        return (f"tests/{self.tests}", *(("-k", self.only) if self.only else ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--output")
    options = parser.parse_args()
    rows, began, clean = [], time.time(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = copy_code(Path(name))
        for mutation in read_mutations(options.names, options.slow):
            if mutation.arguments not in clean:
                clean[mutation.arguments] = run_tests(folder, mutation.arguments)
            rows.append((mutation.name, mutation.file, result(folder, mutation, clean[mutation.arguments])))
            print(*rows[-1], sep=" | ", flush=True)
    text = report(rows, time.time() - began, options.slow)
    if options.output:
        from hf_evidenceflow.atomic_write import atomic_write_text

        atomic_write_text(options.output, text)


def read_mutations(words: list[str], slow: bool) -> list[Mutation]:
    entries = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    mutations = [Mutation(**entry) for entry in entries]
    return [m for m in mutations if (slow or not m.slow) and (not words or any(word in m.name for word in words))]


def copy_code(folder: Path) -> Path:
    for name in (PACKAGE, "tests", "patches", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, folder)
    return folder


def result(folder: Path, mutation: Mutation, clean: tuple[int, str]) -> str:
    """What became of a mutation."""
    path = folder / PACKAGE / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return f"**invalid**: its place is there {source.count(mutation.old)} times"
    if clean[0]:
        return f"**invalid**: without it the tests fail too, {clean[1]}"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, failed = run_tests(folder, mutation.arguments)
    finally:
        path.write_text(source, encoding="utf-8")
    if code == pytest.ExitCode.TESTS_FAILED:
        return f"killed by `{failed}`"
    return "**survived**" if code == pytest.ExitCode.OK else f"**invalid**: pytest ended with {code}"


def run_tests(folder: Path, arguments: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of pytest in a fork that imports the copy in `folder`, and the first test that failed."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        os._exit(_run_pytest(folder, arguments, write))
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        output = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*?::)?(.+?)(?: - .*)?$", output, re.MULTILINE)
    return code, failed[1] if failed else ""


def _run_pytest(folder, arguments, write) -> int:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that tests start
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *arguments])
    with os.fdopen(write, "w", encoding="utf-8") as pipe:
        pipe.write(output.getvalue())
    return int(code)


def report(rows: list[tuple[str, str, str]], seconds: float, slow: bool) -> str:
    from hf_evidenceflow.report.run_record import git_revision
    from hf_evidenceflow.report.tables import markdown_table

    killed = sum(row[2].startswith("killed") for row in rows)
    return (
        "# Mutations of latent training\n\n"
        f"`python benchmarks/latent_mutations.py{' --slow' * slow}`: {killed} of {len(rows)} killed, {seconds:.0f} s, "
        f"commit {git_revision()}. What the mutations are: `benchmarks/latent_mutations.yaml`.\n\n"
        + markdown_table(["mutation", "file", "outcome"], rows, align="l")
        + "\n"
    )


if __name__ == "__main__":
    main()
