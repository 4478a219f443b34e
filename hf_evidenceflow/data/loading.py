"""Loads one split of a data set: from the Hub, a local file or a folder."""

from pathlib import Path

from ..files import parse_json, read_text, readable_file


READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SPLIT_NAMES = ("train", "test", "validation", "val", "dev")


def load_split(
    name_or_path: str,
    split: str,
    configs: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
    max_samples: int | None = None,
    seed: int | None = None,
    texts: tuple[str, ...] = (),
):
    """
    Loads one split of a data set and checks that it can be used.

    Args:
        name_or_path (`str`):
            A local file (`.jsonl`, `.json`, `.parquet`, `.csv`, also with `.gz` behind it), a local folder that holds
            `{split}.jsonl` or the like (also `{split}-00000-of-00001.parquet`, in a folder per configuration, in the
            folder itself or in its `data`), or else the name of a data set on the Hub, which `@` and a revision may
            follow.
        split (`str`):
            Name of the split. A file is taken as it is, unless its name says that it is another split.
        configs (`tuple[str, ...]`, *optional*, defaults to `()`):
            Configurations to join. A local file or folder without them is taken whole.
        columns, texts (`tuple[str, ...]`, *optional*, default to `()`):
            Columns that must be there, and those of them that must hold text.
        max_samples (`int`, *optional*):
            Number of rows to keep. `None` keeps all.
        seed (`int`, *optional*):
            Shuffles the rows before the first `max_samples` are kept. `None` keeps their order.

    Returns:
        `datasets.Dataset`: the rows.

    Raises:
        `FileNotFoundError`: if there is no such file, folder or data set, or if the folder does not have the split.
        `ValueError`: if a file cannot be read (for JSON the message names the line), has no rows, lacks a column or a
            value, or is another split, or if `max_samples` is below 1.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, or None for all rows, got {max_samples}.")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        dataset = _read_files(_split_files(path, split, configs))
    elif path.is_file():
        _check_file_name(path, split)
        dataset = _read_files([path])
    else:
        dataset = _load_from_hub(name_or_path, split, configs)

    _check_columns(dataset, name_or_path, columns, texts)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))


def _check_columns(dataset, name: str, columns: tuple[str, ...], texts: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name} lacks the columns {', '.join(missing)}: needed are {', '.join(columns)}, found are "
            f"{', '.join(dataset.column_names)}. Rename the columns of the data set."
        )
    for column in columns:
        empty = next((row for row, value in enumerate(dataset[column]) if value is None), None)
        if empty is not None:
            raise ValueError(f"Row {empty} of {name} has no value for `{column}`. Correct or remove the row.")
        torn = next(
            (row for row, value in enumerate(dataset[column]) if isinstance(value, str) and "\0" in value), None
        )
        if torn is not None:
            raise ValueError(f"Row {torn} of {name} holds a NUL character in `{column}`. Correct or remove it.")
        wrong = next((row for row, value in enumerate(dataset[column]) if not isinstance(value, str)), None)
        if column in texts and wrong is not None:
            raise ValueError(
                f"Row {wrong} of {name} has no text for `{column}`, but {dataset[wrong][column]!r}. Write "
                "it as text, or remove the row."
            )


def data_format(path: Path) -> str | None:
    """The reader of `datasets` for a file of this name; `None` if there is none."""
    return READERS.get(Path(path.name.removesuffix(".gz")).suffix)


def _load_from_hub(name: str, split: str, configs: tuple[str, ...]):
    import datasets

    if data_format(Path(name)) or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        readable_file(name)
    repo, _, revision = name.partition("@")
    where = {"split": split, "revision": revision} if revision else {"split": split}
    try:
        return datasets.concatenate_datasets(
            [datasets.load_dataset(repo, config, **where) for config in configs or (None,)]
        )
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name} is no local file or folder, and the Hub did not give a data set of that name: "
            f"{str(error).rstrip('.')}. Check the name, log in if it is gated (`hf auth login`), or pass the path "
            "of a local copy."
        ) from error
    except ValueError as error:
        which = "".join(f" of {config!r}" for config in configs)
        raise ValueError(
            f"{name} has no split {split!r}{which} that can be read: {error} Give one that it has."
        ) from error


def _split_files(folder: Path, split: str, configs: tuple[str, ...]) -> list[Path]:
    """The files of a split, all of one format."""
    by_config = {config: _files_in(folder / config, split) for config in configs}
    absent = [config for config, files in by_config.items() if not files]
    if len(absent) < len(configs):
        if absent:
            raise FileNotFoundError(
                f"The folder {folder} has the split {split!r} of some configurations, but not of {', '.join(absent)}. "
                "Add their files, or name the configurations that are there."
            )
        return [file for files in by_config.values() for file in files]
    files = _files_in(folder, split) or _files_in(folder / "data", split)
    if not files:
        found = sorted(file.name for file in folder.iterdir() if data_format(file))
        raise FileNotFoundError(
            f"The folder {folder} has no split {split!r}: expected {split}.jsonl (or .json, .parquet, .csv), found "
            f"{', '.join(found) or 'no data files'}. Check the folder and the name of the split."
        )
    return files


def _files_in(folder: Path, split: str) -> list[Path]:
    for suffix in (*READERS, *(f"{suffix}.gz" for suffix in READERS)):
        files = [*folder.glob(f"{split}{suffix}")] or sorted(folder.glob(f"{split}-*{suffix}"))
        if files:
            return files
    return []


def _check_file_name(path: Path, split: str) -> None:
    if data_format(path) is None:
        raise ValueError(f"The format of {path} is not known: a data file must end in {', '.join(READERS)}.")
    named = path.name.partition(".")[0].split("-")[0]
    if named in SPLIT_NAMES and split in SPLIT_NAMES and named != split:
        raise ValueError(
            f"The split {split!r} was asked of the file {path}, which is the split {named!r} by its name. Pass "
            f"`split={named!r}`, or the file of the split {split!r}."
        )


def _read_files(files: list[Path]):
    import datasets

    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"The file {file} is empty. Check that it was written or downloaded whole.")
    try:
        reader = data_format(files[0])
        dataset = datasets.load_dataset(reader, data_files=[str(file) for file in files], split="train")
        dataset.data.validate(full=True)  # text that is not UTF-8 is only found where a row is read otherwise
        return dataset
    except Exception as error:
        for file in files:
            _raise_for_broken_text(file, error)
        # The reason is in the cause: the error of `datasets` itself only says that there was one
        raise ValueError(
            f"The data could not be read from {', '.join(map(str, files))}: {error.__cause__ or error} Check that the "
            "file is whole and holds rows in the format of its ending."
        ) from error


def _raise_for_broken_text(file: Path, error: Exception) -> None:
    """Names the first line of a file that is no text, or no JSON object; returns if there is none."""
    if file.suffix not in (".jsonl", ".json", ".csv"):
        return
    text = read_text(file)
    for number, line in enumerate(text.split("\n") if file.suffix == ".jsonl" else (), 1):
        if line.strip():
            remedy = f"Each line must be one object, got {line.strip()[:80]!r}; correct or remove it."
            try:
                parse_json(line, f"Line {number} of {file}", remedy=remedy)
            except ValueError as fault:
                raise fault from error
