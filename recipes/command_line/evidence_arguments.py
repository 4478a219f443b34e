"""The settings of layer-wise supervision as options of a command line."""

from dataclasses import field, fields, make_dataclass
from typing import get_type_hints

from hf_evidenceflow.recipes.command_line.option_help import option_helps
from hf_evidenceflow.supervision.config import EvidenceFlowConfig


PREFIX = "evidence_"


def _option_type(hint):
    """A type that argparse can read: text where the config takes text among others, such as a list of layers."""
    members = getattr(hint, "__args__", (hint,))
    return (str if str in members else members[0]) | None


def _option(name: str):
    """The name, type and default of a setting's option, with its help text."""
    metadata = {"help": _HELPS[name].replace("%", "%%")} if name in _HELPS else {}
    return f"{PREFIX}{name}", _option_type(_HINTS[name]), field(default=None, metadata=metadata)


_HINTS = get_type_hints(EvidenceFlowConfig)
_HELPS = option_helps(EvidenceFlowConfig)
_Options = make_dataclass("_Options", [_option(setting.name) for setting in fields(EvidenceFlowConfig)])


class EvidenceFlowArguments(_Options):
    """
    Each field of [`EvidenceFlowConfig`] with the prefix `evidence_`, for a parser of dataclasses. What is not given
    stays at that config's default.

    Args:
        evidence_objective (`str`, *optional*):
            The objective. If not given, or `"none"`, there is no layer-wise supervision.
        evidence_layers (`str`, *optional*):
            As in the config; ids are written `0,2,4`.
        evidence_<field> (*optional*):
            See [`EvidenceFlowConfig`].

    Example:

    ```python
    >>> from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

    >>> (arguments,) = RecipeParser(EvidenceFlowArguments).parse_args_and_config(["--evidence_objective", "cosine"])
    >>> arguments.config().objective
    'cosine'
    ```
    """

    def config(self) -> EvidenceFlowConfig | None:
        """
        The settings.

        Returns:
            [`EvidenceFlowConfig`] or `None`: `None` if there is no layer-wise supervision.

        Raises:
            `ValueError`: if a setting is given without an objective, or one is wrong.
        """
        given = {name.removeprefix(PREFIX): value for name, value in vars(self).items() if value is not None}
        if given.get("objective", "none").lower() == "none":
            given.pop("objective", None)
            if given:
                raise ValueError(
                    f"`{PREFIX}{next(iter(given))}` has no effect without `{PREFIX}objective`. Give one, or remove it."
                )
            return None
        layers = given.get("layers")
        if isinstance(layers, str) and layers.replace(",", "").isdigit():
            given["layers"] = [int(layer) for layer in layers.split(",") if layer]
        return EvidenceFlowConfig(**given)
