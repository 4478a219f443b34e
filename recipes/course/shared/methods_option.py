"""The option `methods` of the recipes that compare many."""

from collections.abc import Iterable, Sequence


def chosen_methods(names: Iterable[str], wanted: Sequence[str] | None) -> list[str]:
    """
    The names that one of the parts is in, whatever its case.

    Args:
        names (`Iterable[str]`):
            All methods.
        wanted (`Sequence[str]`, *optional*):
            Names or parts of them. If not given, all names are chosen.

    Returns:
        `list[str]`: in the order of `names`.

    Raises:
        `ValueError`: if a part is in no name.
    """
    names = list(names)
    for part in wanted or ():
        if not any(part.lower() in name.lower() for name in names):
            raise ValueError(
                f"`methods` has {part!r}, which is no part of any of: {'; '.join(names)}. Give some of these names, "
                "or parts of them."
            )
    return [name for name in names if any(part.lower() in name.lower() for part in wanted or [""])]
