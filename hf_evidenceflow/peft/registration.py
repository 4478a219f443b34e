"""Makes PEFT know a tuning method of ours, until that is undone."""

import enum

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING


_MAPPINGS = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)


class OurPeftType(str, enum.Enum):
    """
    The type of a method that PEFT does not have. `peft.utils.register_peft_method` takes members of PEFT's own enum
    only, but its mappings are keyed by the text.
    """

    HOULSBY = "HOULSBY"


class PeftRegistration:
    """Handle of [`register_method`]: `undo()` takes the method out of PEFT; usable in `with`."""

    def __init__(self, method: str):
        self.method = method

    def undo(self) -> None:
        """Take the method out of PEFT. A second time changes nothing."""
        for mapping in _MAPPINGS:
            mapping.pop(self.method, None)

    def __enter__(self) -> "PeftRegistration":
        return self

    def __exit__(self, *exception) -> None:
        self.undo()


def is_registered(method: str) -> bool:
    return method in PEFT_TYPE_TO_TUNER_MAPPING


def register_method(method: str, config_class: type, tuner_class: type, prefix: str) -> PeftRegistration:
    """
    Make PEFT build, save and load adapters of a method. Again with the same classes changes nothing.

    Args:
        method (`str`):
            The `peft_type` in `adapter_config.json`.
        config_class, tuner_class (`type`):
            A [`~peft.PeftConfig`] and a `peft.tuners.tuners_utils.BaseTuner`.
        prefix (`str`):
            What the names of the adapter's parameters begin with.

    Returns:
        [`PeftRegistration`]: The handle.

    Raises:
        RuntimeError: If PEFT has another method of that name.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(method)
    if known not in (None, config_class):
        raise RuntimeError(
            f"PEFT already has a method {str(method)!r}, {known.__module__}.{known.__qualname__}. Give "
            f"{config_class.__qualname__} another name."
        )
    for mapping, value in zip(_MAPPINGS, (config_class, tuner_class, prefix)):
        mapping[method] = value
    return PeftRegistration(method)
