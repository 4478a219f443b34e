from data_files import own_cache, write_jsonl  # noqa: F401
