"""Plain text of a completion, and what it says after the answer marker."""

MARKER = "####"


def completion_text(completion: str | list[dict]) -> str:
    """
    The text of a completion as TRL hands it to a reward function.

    Args:
        completion (`str` or `list[dict]`):
            Plain text, or chat messages `[{"role": "assistant", "content": ...}]`, where the content is a text or a
            list of text parts. Of several messages the assistant's are joined by line breaks.

    Returns:
        `str`: the text; empty for anything else.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import completion_text

    >>> completion_text([{"role": "assistant", "content": "2 + 3 = 5 #### 5"}])
    '2 + 3 = 5 #### 5'
    ```
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        return ""
    messages = [message for message in completion if isinstance(message, dict)]
    return "\n".join(_content(m.get("content")) for m in messages if m.get("role", "assistant") == "assistant")


def after_only_marker(text: str) -> str | None:
    """
    What stands after the marker `####` in a text that has it exactly once, stripped.

    Args:
        text (`str`):
            Text of a completion.

    Returns:
        `str | None`: the answer's text, possibly empty; `None` if the marker is missing or repeated.

    Example:

    ```python
    >>> from hf_evidenceflow.rewards import after_only_marker

    >>> after_only_marker("2 + 3 = 5 #### 5"), after_only_marker("#### 5 #### 5")
    ('5', None)
    ```
    """
    _, marker, answer = text.partition(MARKER)
    return answer.strip() if marker and MARKER not in answer else None


def _content(content) -> str:
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
