"""Arguments of the chat template: given to an evaluation, or taken from the run record of the model's training."""

import json
import logging
import os
import re
from pathlib import Path

from ..report.run_record import RUN_RECORD_NAME, read_run_record


logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-[0-9]+")


def parse_chat_template_kwargs(given: dict | str | None) -> dict | None:
    """The value of an option `chat_template_kwargs`, given as a dictionary or a JSON object; `None` stays `None`."""
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given)
        except ValueError:
            value = given
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"`chat_template_kwargs` must be a JSON object such as '{{\"enable_thinking\": false}}', got {given!r}."
        )
    return value


def evaluation_chat_template_kwargs(given: dict | None, model_path: str | os.PathLike) -> dict:
    """
    The arguments of the chat template for an evaluation: those given, else those of the training, which is logged.

    Args:
        given (`dict` or `None`):
            Arguments; `{}` for none, whatever the training had.
        model_path (`str` or `os.PathLike`):
            Folder of the model, or of a checkpoint in it, whose `run.json` is read; or a name on the Hub, which has
            no such record.
    """
    if given is not None:
        return given
    folder = Path(model_path).expanduser()
    for place in [folder, folder.parent] if _CHECKPOINT.fullmatch(folder.name) else [folder]:
        record = read_run_record(place)
        if record is None:
            continue
        trained = record.get("configs", {}).get("training", {}).get("chat_template_kwargs") or {}
        if trained:
            logger.warning(
                f"Prompts are rendered with the `chat_template_kwargs` of the training, {json.dumps(trained)} "
                f"({place / RUN_RECORD_NAME}). Give `chat_template_kwargs` for others, '{{}}' for none."
            )
        return trained
    return {}
