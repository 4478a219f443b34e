"""Every committed picture is either drawn again from committed rows, and read, or listed with the reason."""

import fnmatch
import re
from pathlib import Path

import numpy as np
import pytest
from committed_pictures import NOT_REDRAWN, NOTEBOOKS, REDRAWN
from matplotlib import __version__ as matplotlib_version
from PIL import Image
from repository import BENCHMARKS, HELPERS, ROOT


QUICK = ("docs/assets/gallery/ends.png", "results/latent/words/accuracy.png")
COMMITTED = [
    path.relative_to(ROOT).as_posix()
    for folder in ("docs/assets", "results")
    for path in (ROOT / folder).rglob("*.png")
]


def test_every_committed_picture_is_drawn_again_or_says_why_not():
    assert sorted([*REDRAWN, *NOT_REDRAWN]) == sorted(COMMITTED)


def test_the_tests_that_draw_the_others_are_there():
    named = {test for _, test in NOT_REDRAWN.values()} | set(NOTEBOOKS.values())
    assert [test for test in named if not (ROOT / test).exists()] == []


def test_every_notebook_with_a_picture_is_listed():
    notebooks = (ROOT / "docs" / "notebooks").glob("*.ipynb")
    names = [path.relative_to(ROOT).as_posix() for path in notebooks if '"image/png"' in path.read_text("utf-8")]
    assert [name for name in names if not any(fnmatch.fnmatch(name, each) for each in NOTEBOOKS)] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in REDRAWN]
)
def test_a_picture_has_no_faults_and_shows_the_committed_rows(name, tmp_path):
    """It is read as it is saved; and what is committed looks the same, where matplotlib is of the same version."""
    path = tmp_path / Path(name).name
    REDRAWN[name](path)
    with Image.open(ROOT / name) as committed, Image.open(path) as drawn:
        if re.search(r"version\s?([\d.]+),", committed.info["Software"])[1] == matplotlib_version:
            assert committed.size == drawn.size
            old, new = (np.asarray(image.convert("L"), dtype=int) for image in (committed, drawn))
            assert (abs(old - new) > 32).mean() < 1e-4


def test_scripts_that_are_loaded_by_name_have_names_of_their_own():
    """Benchmarks and this folder's helpers are on one path: the one that comes first would be taken for the other."""
    folders = (BENCHMARKS, ROOT / "docs", HELPERS)
    names = [path.name for folder in folders for path in folder.glob("*.py")]
    assert sorted(names) == sorted(set(names))
