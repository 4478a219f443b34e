"""What pip installs works without the repository: the wheel in an environment of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import ROOT


pytestmark = pytest.mark.slow
PACKAGES = {
    "hf_evidenceflow": "hf_evidenceflow",
    "patches": "hf_evidenceflow/patches",
    "recipes": "hf_evidenceflow/recipes",
}
SUFFIXES = {".py", ".yaml", ".typed", ".j2", ".css"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as setuptools leaves its build folder in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source],
        check=True,
        capture_output=True,
    )
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Runs the installed command in an environment that sees the test environment's packages, but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (site / "others.pth").write_text("\n".join(others))
    pip = [sys.executable, "-m", "pip", "--python", folder / "venv" / "bin" / "python", "install"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--force-reinstall", wheel], check=True, capture_output=True)

    def run(*arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [folder / "venv" / "bin" / "hf-evidenceflow", *arguments],
            cwd=folder,
            env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )

    run.folder = folder
    return run


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{installed}/{path.relative_to(ROOT / name).as_posix()}"
        for name, installed in PACKAGES.items()
        for path in (ROOT / name).rglob("*")
        if path.suffix in SUFFIXES or path.parent.name == "templates"
    }
    assert len(wanted) > 200
    assert wanted - held == set()


def test_the_package_of_the_environment_is_the_installed_one(command):
    find = "import importlib.util; print(importlib.util.find_spec('hf_evidenceflow').origin)"
    python = command.folder / "venv" / "bin" / "python"
    found = subprocess.run([python, "-c", find], cwd=command.folder, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(command.folder / "venv")


def test_list_names_the_recipes(command):
    listed = command("list")
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"demo", "hrpo_gsm8k", "course/word_vectors"} <= set(names)


def test_env_reports_the_extras_of_the_installed_package(command):
    described = command("env").stdout
    assert "- transformers: " in described and "- Extra `plots`: " in described and "`test`" not in described


def test_a_recipe_of_a_folder_shows_its_help(command):
    shown = command("course/word_vectors", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--output_dir" in shown.stdout


def test_the_smoke_demo_trains_from_the_packaged_config(command):
    few = ["--sft_steps", "4", "--latent_steps", "4"]
    result = command("demo", "--config", "smoke", "--output_dir", "demo", *few)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Word problems" in result.stdout and (command.folder / "demo" / "demo.md").is_file()


def test_a_packaged_grid_runs_with_its_packaged_recipe(command):
    grid = command.folder / "grid.yaml"
    grid.write_text(
        "name: one\nrecipe: recipes/pretrain_clm.py\nconfig: recipes/configs/pretrain_clm/smoke.yaml\nseeds: [0]\n"
        "metrics: [eval_loss]\noverrides: {max_steps: 2, eval_steps: 2, warmup_steps: 0, plot: false}\n"
        "axes: {arm: {plain: {}}}\n"
    )
    options = ["--config", "grid.yaml", "--output_dir", "grid", "--launcher", "python"]
    result = command("run_experiment", *options)
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
    assert "1 of 1 runs" in (command.folder / "grid" / "report" / "report.html").read_text()
