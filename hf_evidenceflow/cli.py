"""The command `hf-evidenceflow`: lists the recipes, starts them, and says what belongs in a bug report.

```bash
hf-evidenceflow list
hf-evidenceflow hrpo_gsm8k --config smoke --output_dir outputs/hrpo
hf-evidenceflow hrpo_gsm8k --config paper --num_processes 4 --mixed_precision bf16
hf-evidenceflow env
```

It imports no torch unless it must, and starts a recipe in a process of its own.
"""

import ast
import difflib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .environment import describe_environment
from .recipes.command_line.launch_options import FLAGS, VALUES, launch_option
from .version import __version__


USAGE = """usage: hf-evidenceflow list
       hf-evidenceflow RECIPE [--config FILE|NAME] [--OPTION VALUE ...]
       hf-evidenceflow env

`--config NAME` takes a file that is packaged with the recipe, such as `smoke` or `paper`. `RECIPE --help` lists its
options. A recipe that trains takes those of `accelerate launch` too (--num_processes 2), and `--accelerate_config`
with a file of `accelerate config` or a packaged one."""

# Those that `accelerate launch` starts; the others run in one process
TRAINING = ("hrpo_gsm8k", "latent_sft", "layer_skip", "pretrain_clm", "pretrain_tinyseek", "train_from_scratch")


class CommandError(SystemExit):
    """A wrong command line: one line on stderr, and status 2."""

    def __init__(self, message: str):
        print(f"hf-evidenceflow: error: {message}", file=sys.stderr)
        super().__init__(2)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments; `sys.argv[1:]` if not given.

    Returns:
        `int`: the exit code, where no recipe takes the place of this process.

    Raises:
        `SystemExit`: with code 2, if the recipe, its config or an option is wrong.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
    elif name == "--version":
        print(__version__)
    elif name in ("list", "env") and arguments:
        raise CommandError(f"`{name}` takes no arguments, got `{' '.join(arguments)}`.")
    elif name == "list":
        print("\n".join(recipe_lines()))
    elif name == "env":
        for line in describe_environment():
            print(line, flush=True)
    else:
        return start(name, arguments)
    return 0


def recipe_paths() -> dict[str, Path]:
    """The scripts by the names that the command takes, such as `hrpo_gsm8k` and `course/word_vectors`."""
    folder = _recipe_folder()
    scripts = {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}
    return scripts | {f"course/{path.parent.name}": path for path in sorted(folder.glob("course/*/run.py"))}


def recipe_lines() -> list[str]:
    """Name and first sentence of each recipe, as wide as the terminal."""
    paths = recipe_paths()
    width = max(map(len, paths)) + 2
    room = max(shutil.get_terminal_size((120, 24)).columns - width, 40)
    return [
        f"{name:<{width}}{textwrap.shorten(_summary(path), room, placeholder=' ...')}" for name, path in paths.items()
    ]


def packaged_configs(name: str) -> dict[str, Path]:
    """
    The YAML files of a recipe by the names that `--config` takes, such as `smoke` and `coconut/paper`. A recipe of the
    course has `smoke` and, for some, `text`: settings for real text.
    """
    folder = _recipe_folder() / "configs"
    if name.startswith("course/"):
        files = {"smoke": folder / f"{name}.yaml", "text": folder / f"{name}_text.yaml"}
        return {key: path for key, path in files.items() if path.is_file()}
    folder /= name
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def start(name: str, arguments: Sequence[str]) -> int:
    """Run a recipe in the place of this process or, for several processes, by `accelerate launch`."""
    paths = recipe_paths()
    if name not in paths:
        raise CommandError(f"There is no recipe `{name}`.{_nearest(name, [*paths, 'list', 'env'])}")
    options, arguments = split_launch_options(arguments) if name in TRAINING else ([], list(arguments))
    arguments = with_packaged_config(name, arguments)
    if name in TRAINING and {"-h", "--help"} & set(arguments):
        print(f"Of `accelerate launch`, {name} takes: {', '.join(f'--{option}' for option in (*VALUES, *FLAGS))}.\n")
    elif name in TRAINING and (options or _needs_launcher()):
        return launch(options, paths[name], arguments)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(paths[name]), *arguments])


def split_launch_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `accelerate launch` among the arguments, and the others."""
    options: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        name = launch_option(option)
        if name is None:
            others.append(argument)
        elif name in FLAGS:
            options.append(f"--{name}")
        else:
            value = value if equals else next(rest, "--")
            if value.startswith("--"):
                raise CommandError(f"`--{name}` needs a value.")
            options += (
                ["--config_file", _accelerate_config(value)] if name == "accelerate_config" else [f"--{name}", value]
            )
    return options, others


def with_packaged_config(name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with the path in place of the name of a packaged config."""
    arguments = list(arguments)
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            arguments[index + 1] = _config_path(name, arguments[index + 1])
        elif argument.startswith("--config="):
            arguments[index] = "--config=" + _config_path(name, argument.removeprefix("--config="))
    return arguments


def launch(options: Sequence[str], script: Path, arguments: Sequence[str]) -> int:
    """Run a script by `accelerate launch`, inside this process, so that the exit code of the script is known."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = launch_command_parser().parse_args([*options, str(script), *arguments])
    try:
        with _signals_for_the_recipe():
            launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextmanager
def _signals_for_the_recipe() -> Iterator[None]:
    """SIGTERM goes to the processes of this one; SIGINT does nothing here, as a terminal sends it to all of them."""
    import psutil

    def forward(number, frame):
        for child in psutil.Process().children():
            child.send_signal(number)

    earlier = signal.signal(signal.SIGTERM, forward), signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier[0])
        signal.signal(signal.SIGINT, earlier[1])


def _exit_code(code: int) -> int:
    """As a shell shows it for a process that a signal ended."""
    return code if code >= 0 else 128 - code


def _needs_launcher() -> bool:
    """Whether `accelerate launch` would do more than start one process as it is."""
    if "LOCAL_RANK" in os.environ:  # launched already
        return False
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return torch.accelerator.device_count() > 1 or Path(default_config_file).is_file()


def _recipe_folder() -> Path:
    spec = importlib.util.find_spec("hf_evidenceflow.recipes")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _summary(path: Path) -> str:
    """The first paragraph of a script's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def _config_path(recipe: str, value: str) -> str:
    """A path stays; a name, without folder and suffix, is looked up among the recipe's packaged files."""
    files = packaged_configs(recipe)
    is_path = (Path(value).name != value and value not in files) or Path(value).suffix
    if is_path or Path(value).is_file():
        return value
    return _packaged(value, files, f"`{recipe}` has no packaged config `{value}`.")


def _accelerate_config(value: str) -> str:
    if Path(value).is_file():
        return value
    files = {path.stem: path for path in sorted((_recipe_folder() / "accelerate").glob("*.yaml"))}
    return _packaged(value, files, f"`--accelerate_config {value}` is neither a file nor packaged.")


def _packaged(name: str, files: dict[str, Path], problem: str) -> str:
    if name not in files:
        names = ", ".join(f"`{other}`" for other in files)
        raise CommandError(f"{problem} " + (f"There are {names}." if files else "Give the path of a YAML file."))
    return str(files[name])


def _nearest(name: str, known: Collection[str]) -> str:
    by_last_part = {full.rpartition("/")[2]: full for full in known}
    close = difflib.get_close_matches(name.rpartition("/")[2], by_last_part, n=3)
    nearest = ", ".join(f"`{by_last_part[part]}`" for part in close)
    return (f" Nearest: {nearest}." if close else "") + " `hf-evidenceflow list` names all."


if __name__ == "__main__":
    sys.exit(main())
