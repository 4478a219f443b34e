"""What a code block of README and docs names exists: files, options, configs, make targets, extras, imports."""

import ast
import configparser
import functools
import importlib
import importlib.util
import re
import shlex
import sys

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import pytest
from docs_pages import BLOCKS, PAGES, run_commands
from repository import BENCHMARKS, RECIPES, ROOT

from hf_evidenceflow.cli import FLAGS, VALUES, packaged_configs, recipe_paths


BASH = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]
# Handed on to lm-eval, to lighteval and to `transformers serve`
FOREIGN = tuple(f"hf_evidenceflow.integrations.{name}" for name in ("lm_eval", "lighteval", "serve"))


def name_of(block):
    return f"{block.page}:{block.line}"


def commands(block):
    """The commands of a block, each as a list of words."""
    text = block.text.replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


@functools.cache
def options_of(recipe):
    """The long options of a recipe's parser, up to where it would read the command line."""

    class ParsedError(Exception):
        pass

    def stop(self, *args, **kwargs):
        raise ParsedError(self._option_string_actions)

    original = RecipeParser.parse_args_and_config
    RecipeParser.parse_args_and_config = stop
    try:
        spec = importlib.util.spec_from_file_location(f"{recipe.stem}_of_docs", recipe)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        with pytest.raises(ParsedError) as parsed:
            module.main(["--help"])
    finally:
        RecipeParser.parse_args_and_config = original
    return {*parsed.value.args[0], "--config", "--help"}


def check_options(words, known):
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known, f"no such option: {sorted(given - known)}"


def check_command(words):
    words = [word for word in words if "=" not in word or word.startswith("-")]  # VARIABLE=value in front
    if words[0] == "hf-evidenceflow":
        check_evidenceflow(words[1:])
    elif words[0] == "make":
        assert words[1] in make_targets(), words[1]
    elif words[0] == "pip":
        check_extras(words)
    elif "-m" in words and words[0] == "python":
        check_module(words[words.index("-m") + 1], words)
    else:
        for index, word in enumerate(words):
            if re.match(r"(recipes|benchmarks|docs)/.*\.py$", word):
                check_script(word, words[index + 1 :])
                break


def make_targets():
    makefile = (ROOT / "Makefile").read_text()
    (course,) = re.findall(r"^COURSE = ((?:.*\\\n)*.*)$", makefile, re.M)
    return {*re.findall(r"^([\w-]+):", makefile, re.M), *(f"course-{name}" for name in re.findall(r"\w+", course))}


def check_script(path, words):
    assert (ROOT / path).is_file(), path
    for word in words:
        if re.match(r"recipes/.*\.yaml$", word):
            assert (ROOT / word).is_file(), word
    if path.startswith("recipes/"):
        check_options(words, options_of(ROOT / path))
    else:
        check_source(ROOT / path, words)


def check_source(path, words):
    """For parsers of argparse: the option stands in the source of the script, or of a module next to it."""
    sources = [path, *path.parent.glob("*.py")] if path.parent == BENCHMARKS else [path]
    text = "".join(source.read_text() for source in sources)
    check_options(words, {*re.findall(r'"(--\w+)"', text), "--help"})


def check_module(module, words):
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    if module.startswith("hf_evidenceflow") and module not in FOREIGN:
        check_source(RECIPES.parent / spec.origin, words)


def check_evidenceflow(words):
    if words[0] in ("list", "env"):
        assert len(words) == 1
        return
    assert words[0] in recipe_paths(), words[0]
    if "--config" in words and "/" not in (config := words[words.index("--config") + 1]):
        assert config in packaged_configs(words[0])
    check_options(words, options_of(recipe_paths()[words[0]]) | {f"--{name}" for name in (*VALUES, *FLAGS)})


def check_extras(words):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(word for word in words if word[0] in ".h")):
        assert set(extra.split(",")) <= set(setup["options.extras_require"]), extra


def test_pages_and_marked_blocks_are_found():
    places = [block.place for block in BLOCKS]
    assert len(PAGES) > 25 and len(BASH) > 30 and len(PYTHON) > 12
    assert places.count("clone") > 6 and places.count("wheel") > 1


def test_a_mark_says_where_its_block_runs():
    text = "a\n\n<!-- run -->\n```bash\nmake demo\n```\n\n<!-- run: wheel -->\n```bash\nx\n```\n\n```python\ny\n```\n"
    blocks = run_commands.code_blocks("page.md", text)
    assert [(block.line, block.place, block.text) for block in blocks] == [
        (4, "clone", "make demo\n"),
        (9, "wheel", "x\n"),
        (13, None, "y\n"),
    ]


def test_a_mark_with_another_place_is_an_error():
    with pytest.raises(ValueError, match="run in clone or wheel"):
        run_commands.code_blocks("page.md", "<!-- run: whel -->\n```bash\nx\n```\n")


@pytest.mark.parametrize("block", BASH, ids=name_of)
def test_what_a_command_names_exists(block):
    for words in commands(block):
        check_command(words)


@pytest.mark.parametrize(
    "command", ["python recipes/demo.py --sed 1", "hf-evidenceflow demo --config smok", "make demos"]
)
def test_a_wrong_name_in_a_command_is_found(command):
    with pytest.raises(AssertionError):
        check_command(command.split())


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_what_a_snippet_imports_exists(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("hf_evidenceflow"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_the_repository_that_a_page_names_exist(page):
    named = re.findall(
        r"`((?:hf_evidenceflow|recipes|tests|benchmarks|results|docs|patches)/[\w/.-]*)`", page.read_text()
    )
    assert [path for path in named if not (ROOT / path).exists()] == []
