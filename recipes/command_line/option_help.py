"""The help texts of options, read from the docstrings of their dataclasses."""

import inspect
import re


_SECTION = re.compile(r"(Args|Parameters|Arguments):$")
_HEADER = re.compile(r"(\w+(?:,\s+\w+)*) \(.*\):$")


def option_helps(dataclass_type: type) -> dict[str, str]:
    """
    The texts of the `Args:` sections of a dataclass and of what it inherits from.

    Args:
        dataclass_type (`type`):
            A dataclass with docstrings in the format of TRL and transformers.

    Returns:
        `dict[str, str]`: text by the name of the field, in one line.

    Example:

    ```python
    >>> option_helps(HRPOConfig)["rollout_max_rows"]
    'Completions that the engine decodes at the same time on a process; the others wait until some end. ...'
    ```
    """
    helps = {}
    for base in reversed(dataclass_type.__mro__):
        docstring = vars(base).get("__doc__")
        if docstring:
            helps.update(_section_helps(inspect.cleandoc(docstring).splitlines()))
    return helps


def _section_helps(lines: list[str]) -> dict[str, str]:
    """The entries of the section of arguments: a header of a line or more at indent 4, then its text at indent 8."""
    helps: dict[str, str] = {}
    inside, header, names = False, "", []
    for line in lines:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if not text:
            continue
        if indent == 0:
            inside, header, names = _SECTION.match(text) is not None, "", []
        elif inside and (header or indent == 4):
            header, names = f"{header} {text}".strip(), []
            if header.endswith("):"):
                match = _HEADER.match(header)
                header, names = "", re.split(r",\s+", match[1]) if match else []
        elif inside:
            helps |= {name: f"{helps.get(name, '')} {text}".strip() for name in names}
    return {name: _plain(text) for name, text in helps.items()}


def _plain(text: str) -> str:
    """Without the markup of cross-references."""
    return re.sub(r"\[`~?(?:\w+\.)*(\w+(?:\.\w+)?)`\]", r"`\1`", text)
