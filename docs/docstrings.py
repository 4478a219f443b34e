"""Docstrings in TRL's form (``x (`int`, *optional*, defaults to `0`):``) as the reference's parser reads them."""

import re

import griffe


_ARGUMENT = re.compile(r"^([ \t]+[\w*, ]+)\s\s*\((`[^()]*(?:\([^()]*\)[^()]*)*)\):$", re.MULTILINE)
_DEFAULT = re.compile(r",? \*optional\*.*$", re.DOTALL)
_LINK = re.compile(r"\[`~?(?:[\w]+\.)*(\w+)`\](?!\()")
_LEADING_TYPE = re.compile(r"^(\s+)`([\w.]+)`: ", re.MULTILINE)


def readable(docstring: str) -> str:
    """The same without the marks around types, and without defaults, which the signature tells."""

    def argument(match):
        names = " ".join(match[1].split())
        indent = match[1][: len(match[1]) - len(match[1].lstrip())]
        return f"{indent}{names} ({' '.join(_DEFAULT.sub('', match[2]).replace('`', '').split())}):"

    docstring = _LINK.sub(r"`\1`", docstring)
    return _LEADING_TYPE.sub(r"\1\2: ", _ARGUMENT.sub(argument, docstring))


class ReadableDocstrings(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = readable(obj.docstring.value)
