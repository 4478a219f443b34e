"""Makes a tuning method of ours known to peft, so that it is built, saved and loaded like LoRA."""

from packaging.version import Version


# Enum members are made when their class is; checked with the first and the last of these. Remove `_add_member` when
# peft can register a method that is not in its own list.
OLDEST_PEFT, FIRST_UNCHECKED_PEFT = Version("0.20"), Version("0.22")


def peft_type(name: str):
    """
    The member of peft's `PeftType` with a name; it is added if there is none.

    `peft.utils.register_peft_method` takes methods that have a member in `PeftType` only, and peft names no way of
    adding one from outside. A plain string would do for its dictionaries, but not for `config.peft_type.value`.

    Args:
        name (`str`):
            Name of the method in capitals, as it stands in `adapter_config.json`.

    Returns:
        [`~peft.PeftType`]: the member, the same one at each call.

    Raises:
        `ImportError`: if peft is of a version that this was not checked with.
    """
    from peft import PeftType

    if name not in PeftType.__members__:
        _check_version()
        _add_member(PeftType, name)
    return PeftType[name]


def register_method(name: str, config_class: type, model_class: type) -> None:
    """
    Registers a tuning method with peft. A second time, also after a reload of its module, is harmless.

    Args:
        name (`str`):
            Name of the method in lower case.
        config_class, model_class (`type`):
            Its config, a [`~peft.PeftConfig`], and its model, a `peft.tuners.tuners_utils.BaseTuner` with a `prefix`.

    Raises:
        `ImportError`: if peft is of a version that this was not checked with.
        `RuntimeError`: if another method has the name.

    Example:

    ```python
    >>> register_method("houlsby", HoulsbyConfig, HoulsbyModel)
    ```
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import register_peft_method

    member = peft_type(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(member)
    if known is None:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class, prefix=model_class.prefix)
    elif (known.__module__, known.__qualname__) == (config_class.__module__, config_class.__qualname__):
        PEFT_TYPE_TO_CONFIG_MAPPING[member], PEFT_TYPE_TO_TUNER_MAPPING[member] = config_class, model_class
    else:
        raise RuntimeError(
            f"peft already has a method {name!r}, {known.__module__}.{known.__qualname__}. Give "
            f"{config_class.__qualname__} another name."
        )


def _check_version() -> None:
    import peft

    if not OLDEST_PEFT <= Version(peft.__version__) < FIRST_UNCHECKED_PEFT:
        raise ImportError(
            f"A method is added to peft in a way that was checked with peft >= {OLDEST_PEFT} and < "
            f"{FIRST_UNCHECKED_PEFT}, but {peft.__version__} is installed. Install such a version."
        )


def _add_member(enumeration: type, name: str) -> None:
    """What `EnumType` does for each member of a class of strings when it makes the class."""
    member = str.__new__(enumeration, name)
    member._name_ = member._value_ = name
    member.__objclass__ = enumeration
    member._sort_order_ = len(enumeration)
    # As an attribute before it is a member: afterwards the class refuses to set it
    setattr(enumeration, name, member)
    enumeration._member_names_.append(name)
    enumeration._member_map_[name] = enumeration._value2member_map_[name] = member
