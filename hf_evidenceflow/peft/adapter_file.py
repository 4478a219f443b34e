"""Reads what a PEFT adapter says of itself."""

from transformers.utils import find_adapter_config_file

from ..files import check_fields, read_json


def read_adapter(path_or_id: str, **location) -> dict | None:
    """
    The `adapter_config.json` of a folder or Hub repository, `None` where there is none. `location` says where it is:
    `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: If it is no JSON object, or names no base model.
    """
    file = find_adapter_config_file(path_or_id, **location)
    if file is None:
        return None
    content = read_json(file)
    check_fields(content, file, base_model_name_or_path=str)
    return content
