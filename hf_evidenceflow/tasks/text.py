"""
What a completion says, and the answer in it, found the same way for all tasks.

- What a model thinks in `<think>...</think>` is not read: a marker there marks a draft.
- A marker that no answer follows is a heading (`#### Step 1`), not an answer. Exactly one must be left.
- An answer runs to the next marker, or to the end.
- Boxes, bold type, dollars and LaTeX's fonts are wrapping.
"""

import re
from collections.abc import Callable


MARKER = "####"

_LINE_LENGTH = 200  # characters of the first line that tell an answer from a heading

_THINK_TAG = re.compile(r"<(/?)think>")
LEAD = r"[\W_]*(?i:(?:the|correct|final|answer|result|option|choice|is|are|so|therefore|thus)[\W_]+)*"
EQUATION = r"(?:[a-zA-Z]\s?=[\W_]*)?"

_LIST_ITEM = re.compile(r"[\W_]*[0-9]{1,2}[.)]\s+[A-Z]")  # "1. Add"
_STEP = re.compile(r"[\W_]*(?:step|part|case|problem|question|example|section)[\W_]*[0-9]", re.IGNORECASE)
_WRAPPING = re.compile(
    r"\\(?:boxed|fbox|text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt|bb)|left|right|displaystyle|quad)(?![a-zA-Z])"
    r"|\\[()\[\],;:! ]|\*\*|[${}`]"
)
ASCII_OF = {0xFF01 + place: chr(0x21 + place) for place in range(94)}  # full-width forms


def completion_text(completion: str | list[dict]) -> str:
    """
    The text of a completion as TRL hands it to a reward function: plain text, or chat messages whose content is a text
    or a list of text parts. Of several messages the assistant's are joined by line breaks. Anything else gives an
    empty text.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        return ""
    messages = [message for message in completion if isinstance(message, dict)]
    return "\n".join(_content(m.get("content")) for m in messages if m.get("role", "assistant") == "assistant")


def after_only_marker(text: str) -> str | None:
    """What stands after the marker in a text that has it exactly once, stripped; `None` for any other text."""
    _, marker, answer = text.partition(MARKER)
    return answer.strip() if marker and MARKER not in answer else None


def without_thinking(text: str) -> str:
    """
    A completion without what was thought: what follows `<think>`, and what comes before `</think>`. The prompt may
    have opened the thinking, and the end may be missing.
    """
    kept, start, opened = [], 0, False
    for tag in _THINK_TAG.finditer(text):
        closes = bool(tag[1])
        if not opened and not closes:
            kept.append(text[start : tag.start()])
        start, opened = tag.end(), not closes
    if not opened:
        kept.append(text[start:])
    return "\n".join(kept).strip() if start else text


def final_answer(text: str, is_answer: Callable[[str], bool]) -> str | None:
    """
    What stands after the only marker `####` that an answer follows, stripped, possibly empty; `None` if there is no
    such marker, or several. `is_answer` says whether an answer, readable or not, begins with a line.

    Example:

    ```python
    >>> from hf_evidenceflow.tasks.text import final_answer

    >>> final_answer("#### Step 1\\nAdd.\\n#### 18", is_answer=str.isdigit)
    '18'
    ```
    """
    _, marker, rest = without_thinking(text).partition(MARKER)
    if not marker:
        return None
    if MARKER not in rest:
        return rest.strip()
    answer = None
    fields = rest.split(MARKER)
    for place, field in enumerate(fields):
        adjacent = not field and place < len(fields) - 1  # "########" is a marker twice
        if adjacent or is_answer(field.lstrip()[:_LINE_LENGTH].partition("\n")[0].strip()):
            if answer is not None:
                return None
            answer = field
    return None if answer is None else answer.strip()


def is_step(answer: str) -> bool:
    """Whether a text begins as the heading of a numbered step: `Step 1`, `**Part 2**`."""
    return _STEP.match(answer[:_LINE_LENGTH]) is not None


def is_list_item(line: str) -> bool:
    """Whether a line begins as an item of a numbered list: `1. Add`."""
    return _LIST_ITEM.match(line) is not None


def unwrap(text: str) -> str:
    """An answer without boxes, bold type, dollars and LaTeX's fonts; full-width characters become ASCII."""
    return _WRAPPING.sub("", text.translate(ASCII_OF)).strip()


def _content(content) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
