"""Options, their help, and what people read when one is wrong."""

import subprocess
import sys
from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import ArgumentsError, RecipeParser

import pytest
from repository import RECIPES

from hf_evidenceflow.recipes.command_line.option_help import option_helps
from hf_evidenceflow.recipes.command_line.option_names import nearest
from hf_evidenceflow.trainers.hrpo_config import HRPOConfig
from hf_evidenceflow.trainers.ppo_config import PPOConfig


@dataclass
class Parent:
    """
    Args:
        model_name_or_path (`str`):
            Model of the [`~transformers.AutoModel`] kind.
        learning_rate (`float`, *optional*, defaults to `0.1`):
            Step size,
            100 % of it.
    """

    model_name_or_path: str
    learning_rate: float = 0.1


@dataclass
class Arguments(Parent):
    """
    First line.

    Args:
        lora_r, lora_alpha
        (`int`, *optional*):
            Both of them.
        colors (`list[str]`, *optional*):
            Some.

    Raises:
        plot (`bool`):
            Not an argument.
    """

    lora_r: int | None = None
    lora_alpha: int | None = None
    use_peft: bool = False
    task: str = field(default="gsm8k", metadata={"choices": ["gsm8k", "math"]})
    colors: list[str] | None = None
    plot: bool = True

    def __post_init__(self):
        if self.lora_r == 0:
            raise ValueError("`lora_r` must be at least 1, got 0.")


def parse(*arguments):
    (parsed,) = RecipeParser(Arguments).parse_args_and_config(["--model_name_or_path", "m", *arguments])
    return parsed


def parse_file(tmp_path, text, *arguments):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="latin-1")
    return parse("--config", str(path), *arguments)


def test_helps_are_read_from_the_docstrings_of_a_class_and_its_parents():
    assert option_helps(Arguments) == {
        "model_name_or_path": "Model of the `AutoModel` kind.",
        "learning_rate": "Step size, 100 % of it.",
        "lora_r": "Both of them.",
        "lora_alpha": "Both of them.",
        "colors": "Some.",
    }
    assert set(option_helps(HRPOConfig)) >= {"lr_thinking_residual_Lambda", "num_generations", "max_steps"}


def test_the_help_shows_them():
    text = RecipeParser(Arguments, "What it does.").format_help()
    assert "What it does." in text and "100 % of it" in text and "--learning-rate" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lerning_rate", "3"], "There is no option `--lerning_rate 3`. Nearest: `--learning_rate`."),
        (["--lr=5e-6"], "The published `--lr 5e-6` is `--learning_rate 5e-6` here."),
        (["--lora-rank", "32"], "The published `--lora-rank 32` is `--lora_r 32 --use_peft true` here."),
        (["--group_size", "4"], "There is no option `--group_size 4`."),  # the target is not there either
        (["--learning", "3"], "There is no option `--learning 3`. Nearest: `--learning_rate`."),
        (["stray"], "`stray` belongs to no option."),
        (["--task", "gsm9k"], "invalid choice: 'gsm9k'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--lora_r", "0"], "`lora_r` must be at least 1, got 0."),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config"], "--config"),
    ],
)
def test_a_wrong_command_line_ends_in_a_few_lines(arguments, message, capsys):
    with pytest.raises(ArgumentsError) as caught:
        parse(*arguments)
    assert message in str(caught.value) and caught.value.code == 2
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, SystemExit)
    shown = capsys.readouterr().err
    assert message.rstrip(".") in shown and len(shown.splitlines()) <= 3 and "--help" in shown


def test_a_missing_option_is_named():
    with pytest.raises(ArgumentsError, match="`--model_name_or_path` must be given"):
        RecipeParser(Arguments).parse_args_and_config([])


def test_an_unknown_option_is_named_before_a_missing_one():
    with pytest.raises(ArgumentsError, match="`--model_name_or_path m` here"):
        RecipeParser(Arguments).parse_args_and_config(["--model_name", "m"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("lerning_rate: 1.0", "There is no option `--lerning_rate 1.0`. Nearest: `--learning_rate`"),
        ("lora_rank: 32", "`--lora_r 32 --use_peft true`"),
        ("learning_rate: fast", "`learning_rate` cannot be 'fast'"),
        ("lora_r: 1.5", "`lora_r` cannot be 1.5"),
        ("task: gsm9k", "`task` cannot be 'gsm9k': it must be one of gsm8k, math"),
        ("plot: perhaps", "`plot` cannot be 'perhaps'"),
        ("- a\n- b", "mapping|pairs"),
        ("a: [1", "settings.yaml"),
        ("lora_r: 1\nlora_r: 2", "the key 'lora_r' stands twice"),
        ("lora_r: \0", "line 1 holds a NUL character"),
        ("task: m\xe4th", "line 1 has the byte 0xe4"),
        ("task: !!python/name:os.system", "could not determine a constructor"),
        ("learning_rate: .nan", "`learning_rate` in"),
        ("lora_r: .inf", "`lora_r` cannot be inf"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(text, message, tmp_path, capsys):
    with pytest.raises(ArgumentsError, match=r"settings\.yaml") as caught:
        parse_file(tmp_path, text)
    assert any(part in str(caught.value) for part in message.split("|"))
    usage, error = capsys.readouterr().err.split("\n", 1)
    assert usage.startswith("usage: ") and "error: " in error and "Traceback" not in error


def test_a_file_gives_defaults_that_the_command_line_overrides(tmp_path):
    assert parse_file(tmp_path, "learning_rate: .inf").learning_rate == float("inf")
    text = "learning_rate: 3e-4\nlora_r: 2\nplot: false\ncolors: red\n"
    parsed = parse_file(tmp_path, text, "--lora_r", "3")
    assert (parsed.learning_rate, parsed.lora_r, parsed.plot, parsed.colors) == (3e-4, 3, False, ["red"])


def test_the_nearest_names_are_alike_or_hold_the_name():
    names = ["per_device_train_batch_size", "per_device_eval_batch_size", "seed", "lr_scheduler_type"]
    assert set(nearest("batch_size", names)) == set(names[:2])
    assert nearest("sead", names) == ["seed"] and nearest("zzz", names) == []


@pytest.mark.parametrize("config", [HRPOConfig, PPOConfig])
@pytest.mark.parametrize("able, expected", [(False, False), (True, True)])
def test_bf16_is_the_default_where_the_device_has_it(config, able, expected, tmp_path, monkeypatch):
    for module in ("hf_evidenceflow.trainers.precision", "transformers.training_args"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: able)
    assert config(str(tmp_path)).bf16 is expected


def test_bf16_that_was_asked_for_is_never_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match="bf16"):
        HRPOConfig(str(tmp_path), bf16=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["hrpo_gsm8k", "pretrain_clm"])
def test_nothing_stands_before_the_error(recipe):
    path = RECIPES / f"{recipe}.py"
    run = subprocess.run([sys.executable, path, "--sed", "3"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("usage:") and "Nearest: `--seed`" in run.stderr and len(run.stderr.splitlines()) == 2
