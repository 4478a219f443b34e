"""The manifest of a checkpoint: names, sizes and SHA-256 of its files, written last."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..atomic_write import atomic_write_json


MANIFEST_NAME = "manifest.json"
_THREADS = 4  # hashing runs without the interpreter's lock
_CHUNK = 1 << 20


def write_manifest(folder: str | os.PathLike) -> None:
    """Write the manifest of all files in a folder, itself left out."""
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST_NAME]
    sizes = {name: (folder / name).stat().st_size for name in names}
    digests = _digests(folder, names)
    files = {name: {"size": sizes[name], "sha256": digests[name]} for name in names}
    atomic_write_json(folder / MANIFEST_NAME, {"files": files})


def has_manifest(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint folder has a manifest; older ones and those of the stock Trainer have none."""
    return (Path(folder) / MANIFEST_NAME).exists()


def manifest_problem(folder: str | os.PathLike) -> str | None:
    """
    Compare a folder with its manifest, reading every file: the first file that is missing or differs, with the reason,
    or `None`. Files that the manifest does not list may be there.
    """
    folder = Path(folder)
    try:
        files = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST_NAME} cannot be read ({type(error).__name__}: {error})"
    for name, (size, _) in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing, which {MANIFEST_NAME} lists"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found} bytes and was written with {size}: it is cut short, or another file"
    digests = _digests(folder, list(expected))
    for name, (_, digest) in expected.items():
        if digests[name] != digest:
            return f"{name} is not what was written (its SHA-256 differs from that in {MANIFEST_NAME})"
    return None


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(folder / name), names)))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
