"""Reads what a PEFT adapter says of itself."""

from transformers.utils import find_adapter_config_file

from ..files import check_fields, read_json


def read_adapter(path_or_id: str, **location) -> dict | None:
    """
    What stands in the `adapter_config.json` of a folder or Hub repository.

    Args:
        path_or_id (`str`):
            Local folder or Hub name.
        location:
            Where the file is: `revision`, `token`, `cache_dir`, ...

    Returns:
        `dict` or `None`: `None` if there is no such file.

    Raises:
        `ValueError`: if it is no JSON object, or names no base model.
    """
    file = find_adapter_config_file(path_or_id, **location)
    if file is None:
        return None
    content = read_json(file)
    check_fields(content, file, base_model_name_or_path=str)
    return content
