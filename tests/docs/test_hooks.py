"""The site: links that lead out of the pages' folder lead to pages, and broken ones end the build."""

import importlib.util

import pytest
from repository import ROOT


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("docs/loops.md", "[a](../results/loops/README.md)", "[a](results/loops/README.md)"),
        ("docs/reference/models.md", "[a](../../patches/README.md)", "[a](../patches/README.md)"),
        ("docs/loops.md", "[a](notebooks/x.ipynb)", "[a](notebooks/x.md)"),
        ("results/loops/README.md", "[a](../../docs/vllm.md#x), [b](y.md)", "[a](../../vllm.md#x), [b](y.md)"),
        ("CHANGELOG.md", "[a](docs/vllm.md)", "[a](vllm.md)"),
        ("results/text/README.md", "[the grid](../../recipes/configs/x/y.yaml).", "the grid."),
        ("results/tokenizers/README.md", "[a](../../benchmarks/x.py), [b](../x.json)", "a, [b](../x.json)"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site(hooks, page, link, on_the_site):
    file = type("File", (), {"abs_src_path": str(ROOT / page)})
    page = type("Page", (), {"file": file})
    assert hooks.on_page_markdown(link, page, None, None) == on_the_site


def test_a_broken_link_ends_the_build():
    """With `--quiet` mkdocs hides the warnings that `--strict` counts."""
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line)
    assert "--strict" in line and "--quiet" not in line
