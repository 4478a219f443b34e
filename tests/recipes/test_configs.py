"""Every YAML of the recipes is read by its recipe, down to the last option of the last arm of a grid."""

import importlib.util
import itertools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import pytest
import yaml
from repository import RECIPES

from hf_evidenceflow.recipes.experiments.grid_file import load_grid


CONFIGS = RECIPES / "configs"
# Bases of grids, in folders of their own
BASES = {"ablation/paper.yaml", "ablation/small.yaml", "crosslayer_sweep/study.yaml", "pretrain_clm/loss_p.yaml"}
BASES |= {"pretrain_clm/smollm2.yaml"}
# What a file leaves to the user or to the arms of its grid
LEFT_OPEN = {
    "early_exit/smoke.yaml": ("--model_name_or_path", "model"),
    "pretrain_clm/loss_p.yaml": ("--model_type", "llama"),
    "pretrain_clm/text.yaml": ("--model_type", "llama"),
}
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
GRIDS = [name for name in FILES if "recipe" in yaml.safe_load((CONFIGS / name).read_text())]
PLAIN = [name for name in FILES if name not in GRIDS]


class ParsedError(Exception):
    """Raised behind the parsing, instead of the run."""


@pytest.fixture
def parse(monkeypatch):
    """Calls a recipe's `main` up to where its arguments are parsed."""
    original = RecipeParser.parse_args_and_config

    def parse_and_stop(self, *args, **kwargs):
        raise ParsedError(original(self, *args, **kwargs))

    monkeypatch.setattr(RecipeParser, "parse_args_and_config", parse_and_stop)

    def parse(recipe: Path, config: Path | None, *options: str):
        spec = importlib.util.spec_from_file_location(f"{recipe.stem}_of_configs", recipe)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        with pytest.raises(ParsedError):
            module.main([*([] if config is None else ["--config", str(config)]), *options])

    return parse


def test_grids_and_plain_files_are_all_there():
    assert len(GRIDS) > 10 and len(PLAIN) > 20 and set(PLAIN) > BASES


@pytest.mark.parametrize("name", PLAIN)
def test_the_recipe_reads_its_config(name, parse, tmp_path):
    folder = Path(name).parts[0]
    if name in BASES:
        recipe = RECIPES / "pretrain_clm.py"
    elif folder == "course":
        recipe = RECIPES / "course" / Path(name).stem.removesuffix("_text") / "run.py"
    else:
        recipe = RECIPES / f"{folder}.py"
    given = yaml.safe_load((CONFIGS / name).read_text())
    options = [] if "output_dir" in given else ["--output_dir", str(tmp_path)]
    if given.get("bf16"):
        options += ["--use_cpu", "true"]  # transformers refuses bf16 without a GPU otherwise
    parse(recipe, CONFIGS / name, *options, *LEFT_OPEN.get(name, ()))


@pytest.mark.parametrize("name", GRIDS)
def test_the_recipe_of_a_grid_reads_the_options_of_each_arm(name, parse, tmp_path):
    grid = load_grid(CONFIGS / name, {"warm_up_dir": "warm-up"} if name.startswith("compare/") else {})
    value = grid.tune.values[0] if grid.tune is not None else None
    kinds = [False, True] if grid.tune is not None and grid.tune.options else [False]
    for cell, tuning in itertools.product(grid.cells, kinds):
        run = grid.run(cell, grid.seeds[0], value, tuning)
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**run.options, "output_dir": str(tmp_path / "out")}))
        parse(RECIPES.parent / grid.recipe, path)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    "study, options, least",
    [("gsm8k_smollm2", [], (20, 5)), ("text", ["TRAIN=train.txt", "VALIDATION=validation.txt"], (6, 5))],
)
def test_the_recipes_read_each_command_of_a_study(parse, monkeypatch, study, options, least):
    monkeypatch.chdir(RECIPES.parent)
    command = ["make", "--dry-run", "--file", f"results/{study}/Makefile", "OUT=nowhere", *options]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    commands = [shlex.split(line) for line in lines if " recipes/" in line]
    # The same but for seed and folders
    kinds = {(words[1], tuple(words[2:4]), tuple(words[2::2])): words for words in commands}
    assert len(commands) > least[0] and len(kinds) > least[1]
    for words in kinds.values():
        parse(Path(words[1]), None, *words[2:])


def test_each_option_of_the_training_recipes_has_a_help_text(parse, monkeypatch):
    without = []
    original = RecipeParser.parse_args_and_config

    def collect(self, *args, **kwargs):
        without.extend(action.dest for action in self._actions if not action.help)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RecipeParser, "parse_args_and_config", collect)
    for recipe in ("pretrain_clm", "hrpo_gsm8k", "latent_sft"):
        parse(RECIPES / f"{recipe}.py", CONFIGS / recipe / "smoke.yaml")
    assert without == []
