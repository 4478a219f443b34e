"""The command `hf-evidenceflow`, without a recipe that really trains."""

import importlib
import signal
import subprocess
import sys
import time

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import pytest
from accelerate.commands.launch import launch_command_parser
from repository import RECIPES, ROOT

from hf_evidenceflow import cli
from hf_evidenceflow.recipes.command_line.launch_options import FLAGS, VALUES


COMMAND = "import sys; sys.argv[0] = 'hf-evidenceflow'; from hf_evidenceflow import cli; sys.exit(cli.main())"


class Started(Exception):
    """In place of the recipe."""


@pytest.fixture
def started(monkeypatch):
    """Starts a recipe up to its process, whose command line it returns."""

    def execv(path, command):
        raise Started(command)

    monkeypatch.setattr(cli.os, "execv", execv)
    monkeypatch.setenv("LOCAL_RANK", "0")  # as if it were launched

    def start(*arguments):
        with pytest.raises(Started) as caught:
            cli.main(arguments)
        (command,) = caught.value.args
        return command

    return start


@pytest.fixture
def launched(monkeypatch):
    """Starts a recipe up to `accelerate launch`, and returns the options of that, the script and the recipe's own."""
    calls = []
    monkeypatch.setattr(cli, "launch", lambda *arguments: calls.append(arguments) or 7)

    def start(*arguments):
        assert cli.main(arguments) == 7
        return calls[-1]

    return start


def message(capsys, *arguments):
    """What the command says on stderr about a wrong command line."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_the_list_names_every_recipe_in_one_line(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    scripts = [path for path in RECIPES.glob("*.py") if path.stem != "__init__"]
    assert len(names) == len(scripts) + len(list(RECIPES.glob("course/*/run.py")))
    assert {"hrpo_gsm8k", "demo", "course/word_vectors"} <= set(names)
    assert all(len(line.split()) > 4 for line in lines)


def test_every_recipe_ends_by_run_recipe():
    without = [name for name, path in cli.recipe_paths().items() if "    run_recipe(main" not in path.read_text()]
    assert without == []


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_recipe_the_usage_is_shown(arguments, capsys):
    assert cli.main(arguments) == 0
    assert "hf-evidenceflow RECIPE" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, nearest", [("hrpo_gsm9k", "`hrpo_gsm8k`"), ("word_vector", "`course/word_vectors`"), ("lst", "`list`")]
)
def test_a_wrong_recipe_names_the_nearest(name, nearest, capsys):
    assert f"Nearest: {nearest}" in message(capsys, name)


def test_a_recipe_like_nothing_gets_the_list(capsys):
    assert "`zzz`. `hf-evidenceflow list` names all." in message(capsys, "zzz")


@pytest.mark.parametrize("written", [["--config", "smoke"], ["--config=smoke"]])
def test_the_name_of_a_config_is_its_packaged_file(written, started):
    command = started("hrpo_gsm8k", *written, "--output_dir", "o")
    path = RECIPES / "configs" / "hrpo_gsm8k" / "smoke.yaml"
    assert command[1] == str(RECIPES / "hrpo_gsm8k.py")
    assert "=".join(command[2:4]) in (f"--config={path}", f"--config={path}=--output_dir")
    assert command[-2:] == ["--output_dir", "o"]


def test_smoke_is_the_small_form_of_a_recipe_of_the_course(started):
    command = started("course/word_vectors", "--config", "smoke")
    assert command[1:] == [
        str(RECIPES / "course" / "word_vectors" / "run.py"),
        "--config",
        str(RECIPES / "configs" / "course" / "word_vectors.yaml"),
    ]


def test_a_config_in_a_folder_of_its_recipe_is_named_with_it(started):
    path = RECIPES / "configs/latent_sft/coconut/paper.yaml"
    assert started("latent_sft", "--config", "coconut/paper")[-1] == str(path)


@pytest.mark.parametrize("value", ["mine.yaml", "folder/smoke", "./smoke"])
def test_the_path_of_a_config_stays(value, started):
    assert started("hrpo_gsm8k", "--config", value)[-1] == value


def test_a_wrong_name_of_a_config_lists_those_there_are(capsys):
    said = message(capsys, "hrpo_gsm8k", "--config", "smok")
    assert "no packaged config `smok`. There are `gsm8k_scratch`, `gsm8k_smollm2`, `latent`, `paper`, `smoke`." in said


def test_a_recipe_without_configs_asks_for_a_file(capsys):
    assert "Give the path of a YAML file." in message(capsys, "compare_evaluations", "--config", "smoke")


def test_options_of_accelerate_launch_are_told_from_the_recipe_s(launched):
    options, script, others = launched(
        *("hrpo_gsm8k", "--num-processes", "3", "--seed", "5", "--use_fsdp", "--mixed_precision=bf16", "--beta=0")
    )
    assert options == ["--num_processes", "3", "--use_fsdp", "--mixed_precision", "bf16"]
    assert script == RECIPES / "hrpo_gsm8k.py" and others == ["--seed", "5", "--beta=0"]


def test_a_packaged_config_of_accelerate_is_taken_by_name(launched):
    options, *_ = launched("hrpo_gsm8k", "--accelerate_config", "fsdp2")
    assert options == ["--config_file", str(RECIPES / "accelerate" / "fsdp2.yaml")]


def test_a_wrong_config_of_accelerate_lists_those_there_are(capsys):
    said = message(capsys, "hrpo_gsm8k", "--accelerate_config", "fsdp3")
    assert "neither a file nor packaged. There are" in said and "`fsdp2`" in said


def test_an_option_of_accelerate_launch_needs_its_value(capsys):
    assert "`--num_processes` needs a value." in message(capsys, "hrpo_gsm8k", "--num_processes", "--seed")


def test_a_recipe_in_one_process_gets_all_options(started):
    assert started("probe", "--num_processes", "2")[2:] == ["--num_processes", "2"]


def test_options_of_accelerate_launch_exist():
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert {f"--{name}" for name in (*VALUES, *FLAGS)} - known == {"--accelerate_config"}


def test_flags_of_accelerate_launch_take_no_value():
    actions = {action.dest: action for action in launch_command_parser()._actions}
    assert [name for name in FLAGS if actions[name].nargs != 0] == []
    assert [name for name in VALUES[1:] if actions[name].nargs == 0] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.TRAINING)
def test_no_recipe_that_trains_has_an_option_of_accelerate_launch(name, monkeypatch):
    def stop(parser, argv):
        raise Started(parser.names)

    monkeypatch.setattr(RecipeParser, "parse_args_and_config", stop)
    with pytest.raises(Started) as caught:
        importlib.import_module(f"hf_evidenceflow.recipes.{name}").main([])
    (names,) = caught.value.args
    assert len(names) > 5 and names & {*VALUES, *FLAGS} == set()


@pytest.mark.slow
def test_list_imports_no_torch_and_env_reports_versions_and_devices():
    script = COMMAND.replace("sys.exit(cli.main())", "cli.main(); print('torch' in sys.modules)")
    listed = subprocess.run([sys.executable, "-c", script, "list"], capture_output=True, text=True, cwd=ROOT)
    assert listed.stdout.splitlines()[-1] == "False", listed.stderr
    described = subprocess.run(
        [sys.executable, "-c", COMMAND, "env"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    for part in ("- hf_evidenceflow: ", "- torch: ", "- transformers: ", "- Devices: "):
        assert part in described


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, ours",
    [
        ("--model_name x", "--model_name_or_path x"),
        ("--lora_rank 3", "--lora_r 3 --use_peft true"),
        ("--lr 5", "--learning_rate 5"),
        ("--lr_residual_gate 7", "--lr_thinking_residual_gate 7"),
        ("--lr_residual_Lambda 2", "--lr_thinking_residual_Lambda 2"),
        ("--group_size 11", "--num_generations 11"),
    ],
)
def test_a_flag_of_the_published_script_gets_our_name(flag, ours, capsys):
    from hf_evidenceflow.recipes import hrpo_gsm8k

    with pytest.raises(SystemExit) as caught:
        hrpo_gsm8k.main(flag.split())
    assert caught.value.code == 2
    assert f"The published `{flag}` is `{ours}` here" in capsys.readouterr().err


SCRIPT = """
import os, signal, sys, time
def end(number, frame):
    time.sleep(1)
    open(sys.argv[1], "a").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open(sys.argv[1], "w").write("started ")
if sys.argv[2] == "fail":
    sys.exit(7)
time.sleep(60)
"""


def launched_script(tmp_path, kind):
    script, mark = tmp_path / "script.py", tmp_path / "mark"
    script.write_text(SCRIPT)
    code = (
        "import sys; from pathlib import Path; from hf_evidenceflow import cli; "
        f"sys.exit(cli.launch(['--num_processes', '1', '--cpu'], Path({str(script)!r}), [{str(mark)!r}, {kind!r}]))"
    )
    return subprocess.Popen([sys.executable, "-c", f"import sys; sys.argv[0] = 'hf-evidenceflow'; {code}"]), mark


@pytest.mark.slow
def test_the_exit_code_of_a_launched_recipe_passes_through(tmp_path):
    process, _ = launched_script(tmp_path, "fail")
    assert process.wait(120) == 7


@pytest.mark.slow
def test_sigterm_reaches_a_launched_recipe_which_saves_before_the_command_ends(tmp_path):
    process, mark = launched_script(tmp_path, "wait")
    while not mark.exists() or not mark.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert mark.read_text() == "started saved"
