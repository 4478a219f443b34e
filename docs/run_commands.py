"""
Run the commands and snippets of README and docs that are marked as runnable, as written, from a fresh clone.

```bash
python docs/run_commands.py                    # clones the last commit, `make install`, then every marked block
python docs/run_commands.py --clone ../clone --pages docs/quickstart.md
```

`<!-- run -->` above a fence: the block runs in the clone, with its environment. `<!-- run: wheel -->`: in an empty
folder, with the wheel of the clone installed in an environment of its own. The blocks of a page
run in their order, so that one may use what an earlier one has written. The exit code is 1 if any has failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "recipes/course/README.md", "patches/README.md")
PLACES = ("clone", "wheel")
_BLOCK = re.compile(
    r"(?:^<!-- run(?:: (?P<place>\w+))? -->\n(?P<marked>))?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text, and the place that it runs in (`None`: it does not)."""

    page: str
    line: int
    language: str
    text: str
    place: str | None


def code_blocks(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page."""
    blocks = []
    for match in _BLOCK.finditer(text):
        place = (match["place"] or "clone") if match["marked"] is not None else None
        if place not in (None, *PLACES):
            raise ValueError(f"{page}: `<!-- run: {place} -->`, but blocks run in {' or '.join(PLACES)}.")
        line = text.count("\n", 0, match.start("language")) + 1
        blocks.append(Block(page, line, match["language"], match["text"], place))
    return blocks


def all_blocks(root: Path = ROOT) -> list[Block]:
    """The blocks of every page of the checkout."""
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    return [
        block for path in pages for block in code_blocks(path.relative_to(root).as_posix(), path.read_text("utf-8"))
    ]


def make_clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    subprocess.run(["make", "install"], cwd=folder, check=True)
    return folder


def install_wheel(clone: Path, folder: Path) -> Path:
    """An environment with the clone's wheel and the packages of the clone's environment, but not the clone."""
    python = clone / ".venv" / "bin" / "python"
    build = [python, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    subprocess.run(build, cwd=clone, check=True, capture_output=True)
    subprocess.run([python, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    paths = [
        python,
        "-c",
        "import sys; print(*[path for path in sys.path if path.endswith('site-packages')], sep='\\n')",
    ]
    (site,) = (folder / ".venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(subprocess.run(paths, check=True, capture_output=True, text=True).stdout)
    pip = [python, "-m", "pip", "--python", folder / ".venv" / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--force-reinstall", *folder.glob("*.whl")], check=True)
    return folder


def run_block(block: Block, folder: Path, limit: float) -> subprocess.CompletedProcess:
    """Run one block in a folder that has a `.venv`; seconds are the limit."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else ["python", "-c"]
    return subprocess.run(
        [*command, block.text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )


def run_all(blocks: list[Block], folders: dict[str, Path], limit: float) -> Iterator[Block]:
    """Runs the blocks, with a line for each; yields those that have failed."""
    page = None
    for block in blocks:
        if block.page != page:  # each page begins without the outputs of others
            page = block.page
            for folder in folders.values():
                shutil.rmtree(folder / "outputs", ignore_errors=True)
        start = time.monotonic()
        done = run_block(block, folders[block.place], limit)
        seconds = time.monotonic() - start
        print(f"{block.page}:{block.line} ({block.place}): exit {done.returncode}, {seconds:.0f} s", flush=True)
        if done.returncode:
            print(done.stdout[-3000:], flush=True)
            yield block


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clone", type=Path, help="A clone with an environment in `.venv`; made anew if not given.")
    parser.add_argument("--pages", nargs="*", help="Pages to take blocks from; all if not given.")
    parser.add_argument("--limit", type=float, default=900, help="Seconds that a block may take.")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        clone = args.clone.resolve() if args.clone else make_clone(Path(folder) / "clone")
        blocks = [block for block in all_blocks(clone) if block.place and (not args.pages or block.page in args.pages)]
        folders = {"clone": clone}
        if any(block.place == "wheel" for block in blocks):
            folders["wheel"] = install_wheel(clone, Path(folder) / "wheel")
        failed = list(run_all(blocks, folders, args.limit))
    print(f"{len(blocks)} blocks, {len(failed)} failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
