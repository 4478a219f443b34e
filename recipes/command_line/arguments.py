"""The command line of the recipes: options with help texts, YAML files, and errors of a few lines."""

import argparse
import copy
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from hf_evidenceflow.files import read_yaml
from hf_evidenceflow.quiet_imports import quiet_imports
from hf_evidenceflow.recipes.command_line.number_checks import check_training
from hf_evidenceflow.recipes.command_line.option_help import option_helps
from hf_evidenceflow.recipes.command_line.option_names import about_unknown, split_unknown


with quiet_imports():
    import transformers.trainer_utils  # noqa: F401  imports PEFT, and that bitsandbytes, in every recipe
    from transformers import HfArgumentParser


class ArgumentsError(ValueError, SystemExit):
    """Wrong arguments: a `ValueError` for a caller, and for a command line the end, with status 2 and no traceback."""

    def __init__(self, message: str):
        super().__init__(message)
        self.code = 2


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Without the second spelling of each option, with hyphens, and without defaults of None."""

    def _format_action_invocation(self, action):
        action = copy.copy(action)
        action.option_strings = action.option_strings[:1] if action.dest != "help" else action.option_strings
        return super()._format_action_invocation(action)

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


class RecipeParser(HfArgumentParser):
    """
    A [`~trl.TrlParser`] that people can read: options take their help from the docstrings, the usage is one line, and
    an unknown option, on the command line or in the file, is answered with the nearest ones, or with ours for a flag
    of the published scripts. Options are written in full. A file sets no environment variables.

    Args:
        dataclass_types (`type` or `Iterable[type]`):
            Dataclasses to fill. `--config` is the file of options, unless one of them has a field of that name.
        description (`str`, *optional*):
            What the recipe does; shown by `--help`.

    Example:

    ```python
    >>> (arguments,) = RecipeParser(ScriptArguments).parse_args_and_config(["--config", "a.yaml", "--seed", "1"])
    ```
    """

    def __init__(self, dataclass_types: type | Iterable[type], description: str | None = None):
        types = [dataclass_types] if is_dataclass(dataclass_types) else list(dataclass_types)
        names = {field.name for kind in types for field in fields(kind) if field.init}
        self._reads_config = "config" not in names
        config = "[--config FILE.yaml] " if self._reads_config else ""
        super().__init__(
            types,
            description=description,
            usage=f"%(prog)s {config}[--OPTION VALUE ...]",
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self.names = names
        self._hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
        if self._reads_config:
            self.add_argument(
                "--config", default=argparse.SUPPRESS, help="YAML file of options; those given here override it."
            )
        helps = {name: text for kind in types for name, text in option_helps(kind).items()}
        for action in self._actions:
            if not action.help and action.dest in helps:
                action.help = helps[action.dest].replace("%", "%%")

    def parse_args_and_config(self, args: Sequence[str] | None = None) -> tuple:
        """
        Read the options of a command line and of the YAML file that it names.

        Args:
            args (`Sequence[str]`, *optional*):
                The command line; `sys.argv[1:]` if not given.

        Returns:
            `tuple`: an instance of each dataclass.

        Raises:
            [`ArgumentsError`]: if an option is unknown, missing or wrong. The message is on stderr too.
        """
        args = list(sys.argv[1:] if args is None else args)
        if self._reads_config:
            chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=self.usage, prog=self.prog)
            chooser.error = self.error
            chooser.add_argument("--config")
            chosen, args = chooser.parse_known_args(args)
            if chosen.config is not None:
                self._read_config(chosen.config)
        try:
            parsed = self.parse_args_into_dataclasses(args, look_for_args_file=False)
            for part in parsed:
                check_training(part)
            for seed in (part.seed for part in parsed if isinstance(getattr(part, "seed", None), int)):
                if not 0 <= seed < 2**32:
                    raise ValueError(f"`seed` must be from 0 to 2**32 - 1, got {seed}. Choose another")
            return parsed
        except ArgumentsError:
            raise
        except ValueError as error:
            self.error(str(error))

    def parse_known_args(self, args=None, namespace=None):
        """Differs from the parent in that unknown options are an error, before missing ones and the dataclasses."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        try:
            namespace, unknown = super().parse_known_args(args, namespace)
        finally:
            for action in required:
                action.required = True
        if unknown:
            self.error(" ".join(self._about(name, value) for name, value in split_unknown(unknown)))
        missing = [f"`--{action.dest}`" for action in required if getattr(namespace, action.dest) is None]
        if missing:
            self.error(f"{', '.join(missing)} must be given, here or in the file of `--config`.")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # argparse names both spellings
        print(
            f"{self.format_usage()}{self.prog}: error: {message.rstrip('.')}. `--help` lists all options.",
            file=sys.stderr,
        )
        raise ArgumentsError(message)

    def _about(self, name: str | None, value: Any) -> str:
        if name is None:
            return f"`{value}` belongs to no option."
        return about_unknown(name, value, self.names)

    def _read_config(self, path: str) -> None:
        """Make the values of a YAML file the defaults."""
        try:
            settings = read_yaml(path, remedy="Correct the file of `--config`.", allow_infinity=True)
        except (OSError, ValueError) as error:
            self.error(str(error))
        actions = {
            action.dest: action for action in self._actions if not isinstance(action, argparse._StoreFalseAction)
        }
        unknown = [(str(name), value) for name, value in settings.items() if name not in self.names]
        if unknown:
            self.error(f"{path}: " + " ".join(self._about(name, value) for name, value in unknown))
        for name, value in settings.items():
            action = actions[name]
            try:
                action.default = _converted(action, value, self._hints.get(name))
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                self.error(f"{path}: `{name}` cannot be {value!r}: {error}. Correct it there")
            action.required = False


def _converted(action: argparse.Action, value: Any, hint: Any) -> Any:
    """A value of a YAML file as the command line would give it; mappings, and what is text there, stay as they are."""
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    if value is None and hint is not None and type(None) not in kinds:
        raise ValueError("it needs a value")
    if kinds - {type(None)} == {str}:
        if isinstance(value, dict | list):
            raise ValueError("it must be text")
        value = value if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if action.nargs == "+" and value is not None:
        kept, action.nargs = action.nargs, None
        try:
            return [_converted(action, item, None) for item in (value if isinstance(value, list) else [value])]
        finally:
            action.nargs = kept
    if isinstance(value, dict | list) and action.type in (int, float):
        raise ValueError("it must be a number")
    if value is None or action.type in (None, str) or isinstance(value, dict | list):
        converted = value
    else:
        converted = action.type(str(value))
    if action.choices is not None and converted is not None and converted not in action.choices:
        raise ValueError(f"it must be one of {', '.join(map(str, action.choices))}")
    return converted
