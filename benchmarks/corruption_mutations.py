"""Ways to damage a file, by its format; each says what it touched, so that a message can be looked through for it."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file


CANARY = "CORRUPTION_CANARY"  # environment variable: the file that planted code makes


class Payload:
    """Makes the canary when it is unpickled."""

    def __reduce__(self):
        return exec, (f"import os; open(os.environ['{CANARY}'], 'w').close()",)


@dataclass(frozen=True)
class Mutation:
    """One way to damage a file: `apply(path, rng)` gives words, such as a key, that the damage is about."""

    name: str
    apply: Callable[[Path, random.Random], list[str]]


def _rewrite(change: Callable[[bytes, random.Random], bytes]):
    def apply(path, rng):
        path.write_bytes(change(path.read_bytes(), rng))
        return []

    return apply


def _flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _insert(piece):
    def change(data, rng):
        at = rng.randrange(len(data) + 1)
        return data[:at] + piece + data[at:]

    return change


def _folder(path, rng):
    path.unlink()
    path.mkdir()
    return []


def _link(path, rng):
    path.unlink()
    path.symlink_to(path.with_name("gone"))
    return []


def _gone(path, rng):
    path.unlink()
    return []


def _pickle(path, rng):
    path.write_bytes(pickle.dumps(Payload()))
    return []


def _zip_pickle(path, rng):
    torch.save({"state": Payload(), "param_groups": []}, path)
    return []


ANY = [
    Mutation("cut", _rewrite(lambda data, rng: data[: rng.randrange(1, len(data))])),
    Mutation("bit flipped", _rewrite(_flip)),
    Mutation("bit flipped", _rewrite(_flip)),
    Mutation("empty", _rewrite(lambda data, rng: b"")),
    Mutation("zeros", _rewrite(lambda data, rng: bytes(len(data)))),
    Mutation("a folder", _folder),
    Mutation("a broken link", _link),
    Mutation("gone", _gone),
]
TEXT = [
    *ANY,
    Mutation("a Latin-1 byte", _rewrite(_insert(b"\xe9"))),
    Mutation("a NUL", _rewrite(_insert(b"\0"))),
    Mutation("UTF-16", _rewrite(lambda data, rng: data.decode().encode("utf-16"))),
]


def _nodes(content, path=()):
    """Each place in a JSON-like value: `(container, key)`."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _nodes(value, (*path, key))


def _edit(read, write):
    """Mutations of one entry, with a reader and a writer of the format."""

    def entry(change):
        def apply(path, rng):
            content = read(path)
            places = list(_nodes(content))
            container, key = places[rng.randrange(len(places))]
            change(container, key, rng)
            write(content, path)
            return [str(key)]

        return apply

    def drop(container, key, rng):
        del container[key]

    def replace(container, key, rng):
        old = container[key]
        others = [None, True, -7, 3.5, "x", [], {"a": 1}, 10**30, -0.5, ""]
        others = [other for other in others if type(other) is not type(old)]
        container[key] = rng.choice(others)

    def number(container, key, rng):
        container[key] = rng.choice([float("nan"), float("inf"), -1, 0, 1e308])

    def add(container, key, rng):
        if isinstance(container, dict):
            container[f"{key}x"] = container[key]
        else:
            container.insert(rng.randrange(len(container) + 1), container[key])

    return [
        Mutation("entry missing", entry(drop)),
        Mutation("entry missing", entry(drop)),
        Mutation("entry of another type", entry(replace)),
        Mutation("entry of another type", entry(replace)),
        Mutation("entry of another type", entry(replace)),
        Mutation("number useless", entry(number)),
        Mutation("number useless", entry(number)),
        Mutation("entry unknown", entry(add)),
    ]


def _whole(text):
    def apply(path, rng):
        path.write_text(text)
        return []

    return Mutation(f"content {text[:12]!r}", apply)


def _twice(path, rng):
    content = json.loads(path.read_text())
    key = rng.choice(list(content))
    body = json.dumps(content)
    path.write_text(f"{{{json.dumps(key)}: null, {body[1:]}")
    return [key]


def _code(path, rng):
    content = json.loads(path.read_text())
    (path.parent / "evil.py").write_text(f"import os\nopen(os.environ['{CANARY}'], 'w').close()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    content["auto_map"] = {name: ["evil.Evil", "evil.Evil"] if "Tok" in name else "evil.Evil" for name in names}
    content["tokenizer_class"] = content["custom_generate"] = "Evil"
    path.write_text(json.dumps(content))
    return ["evil", "Evil", "auto_map"]


JSON = [
    *TEXT,
    *_edit(lambda path: json.loads(path.read_text()), lambda content, path: path.write_text(json.dumps(content))),
    _whole("[" * 100_000),
    _whole("[]"),
    _whole("3"),
    _whole("{}"),
    Mutation("key twice", _twice),
    Mutation("code", _code),
]
YAML = [
    *TEXT,
    *_edit(lambda path: yaml.safe_load(path.read_text()), lambda content, path: path.write_text(yaml.dump(content))),
    _whole("[" * 5_000),
    _whole("- a"),
    _whole("a: [1"),
    _whole("a: &a [*a]"),
    _whole("\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '0'] * 9)}]" for i in range(12))),
    Mutation(
        "code",
        lambda path, rng: (
            path.write_text(path.read_text() + f"extra: !!python/object/apply:os.system ['touch ${CANARY}']\n")
            and ["python/object"]
        ),
    ),
    Mutation("key twice", lambda path, rng: path.write_text(path.read_text() * 2) and []),
]


def _line(change):
    def apply(path, rng):
        lines = path.read_text().splitlines(keepends=True)
        at = rng.randrange(len(lines))
        words, lines[at] = change(lines[at], rng)
        path.write_text("".join(lines))
        return [*words, f"ine {at + 1}", f"ow {at}"]

    return apply


def _row(change):
    def apply(line, rng):
        row = json.loads(line)
        key = rng.choice(list(row))
        change(row, key, rng)
        return [key], json.dumps(row) + "\n"

    return _line(apply)


JSON_LINES = [
    *TEXT,
    Mutation("line cut", _line(lambda line, rng: ([], line[: rng.randrange(1, len(line) - 1)] + "\n"))),
    Mutation("line of another type", _line(lambda line, rng: ([], rng.choice(["[1]", "3", "null", "text"]) + "\n"))),
    Mutation("line too deep", _line(lambda line, rng: ([], "[" * 100_000 + "\n"))),
    Mutation("entry missing", _row(lambda row, key, rng: row.pop(key))),
    Mutation("entry null", _row(lambda row, key, rng: row.update({key: None}))),
    Mutation("entry a number", _row(lambda row, key, rng: row.update({key: 7}))),
    Mutation("entry a list", _row(lambda row, key, rng: row.update({key: ["a"]}))),
    Mutation("entry NaN", _row(lambda row, key, rng: row.update({key: float("nan")}))),
    Mutation("line removed", _line(lambda line, rng: ([], ""))),
]


def _tensors(change):
    def apply(path, rng):
        weights = load_file(path)
        name = rng.choice(sorted(weights))
        change(weights, name, rng)
        save_file(weights, path, metadata={"format": "pt"})
        return [name]

    return apply


def _set(value):
    def change(weights, name, rng):
        flat = weights[name].view(-1)
        flat[rng.randrange(len(flat))] = value

    return change


def _flip_at(part):
    def change(data, rng):
        end = 8 + int.from_bytes(data[:8], "little")
        at = rng.randrange(*((0, 8), (8, end), (end, len(data)))[part])
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]

    return _rewrite(change)


SAFETENSORS = [
    *ANY,
    Mutation("NaN", _tensors(_set(float("nan")))),
    Mutation("NaN", _tensors(_set(float("nan")))),
    Mutation("infinity", _tensors(_set(float("inf")))),
    Mutation("tensor missing", _tensors(lambda weights, name, rng: weights.pop(name))),
    Mutation("tensor missing", _tensors(lambda weights, name, rng: weights.pop(name))),
    Mutation("tensor renamed", _tensors(lambda weights, name, rng: weights.update({f"{name}x": weights.pop(name)}))),
    Mutation("tensor unknown", _tensors(lambda weights, name, rng: weights.update(extra=torch.ones(3)))),
    Mutation("tensor flat", _tensors(lambda w, name, rng: w.update({name: w[name].flatten()[1:].clone()}))),
    Mutation("tensor of whole numbers", _tensors(lambda w, name, rng: w.update({name: (w[name] * 100).int()}))),
    Mutation("length flipped", _flip_at(0)),
    Mutation("header flipped", _flip_at(1)),
    Mutation("header flipped", _flip_at(1)),
    Mutation("values flipped", _flip_at(2)),
    Mutation("values flipped", _flip_at(2)),
    Mutation("bytes appended", _rewrite(lambda data, rng: data + b"more")),
    Mutation("code", _pickle),
]
PICKLES = [
    *ANY,
    Mutation("code", _pickle),
    Mutation("code", _zip_pickle),
    Mutation("another object", lambda path, rng: torch.save([1, "a"], path) or []),
    Mutation("empty object", lambda path, rng: torch.save({}, path) or []),
    Mutation("another file", lambda path, rng: shutil.copy(next(iter(path.parent.glob("*.json"))), path) and []),
]


def _array(change):
    def apply(path, rng):
        np.save(path, change(np.load(path), rng), allow_pickle=True)
        return []

    return apply


def _other_value(ids, rng):
    ids[rng.randrange(len(ids))] ^= 1
    return ids


NPY = [
    *ANY,
    Mutation("header flipped", _rewrite(lambda data, rng: _flip(data[:128], rng) + data[128:])),
    Mutation("another value", _array(_other_value)),
    Mutation("another value", _array(_other_value)),
    Mutation("shorter", _array(lambda ids, rng: ids[:-3])),
    Mutation("another type", _array(lambda ids, rng: ids.astype(rng.choice([np.float32, np.int64, np.uint8])))),
    Mutation("another shape", _array(lambda ids, rng: ids[None])),
    Mutation("bytes appended", _rewrite(lambda data, rng: data + b"more")),
    Mutation("code", _array(lambda ids, rng: np.array([Payload()], dtype=object))),
]


def format_of(path: Path) -> list[Mutation]:
    """The mutations for a file, by its name."""
    by_suffix = {".json": JSON, ".yaml": YAML, ".jsonl": JSON_LINES, ".safetensors": SAFETENSORS, ".npy": NPY}
    by_suffix |= dict.fromkeys((".pt", ".pth", ".bin", ".pkl"), PICKLES) | dict.fromkeys((".txt", ".csv"), TEXT)
    return by_suffix.get(path.suffix, ANY)


def legal_form(before: Path, after: Path) -> str | None:
    """
    How a damaged file still is what its format and the kinds of its values allow, so that no reader without a checksum
    can know: `"another legal value"`, `"an entry left out"`, or `None` if it is not.
    """
    if not after.is_file():
        return None
    try:
        old, new = _form(before), _form(after)
    except Exception:
        return None
    if old == new:
        return "another legal value"
    return "an entry left out" if _left_out(old, new) else None


def _left_out(old, new) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return new.keys() <= old.keys() and all(_left_out(old[key], new[key]) for key in new)
    return old == new or new == "NoneType"  # which is how an entry is left out in JSON


def _form(path: Path):
    if path.suffix == ".safetensors":
        weights = load_file(path)
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
        return {name: (tensor.shape, tensor.dtype, finite) for name, tensor in weights.items()}
    if path.suffix in (".pt", ".pth", ".bin", ".pkl"):
        return _shape(torch.load(path, weights_only=True))
    if path.suffix == ".npy":
        ids = np.load(path, allow_pickle=False)
        return ids.dtype, ids.shape
    text = path.read_bytes().decode()
    if "\0" in text or not text.strip():
        raise ValueError
    if path.suffix == ".json":
        return _shape(json.loads(text))
    if path.suffix == ".yaml":
        return _shape(yaml.safe_load(text))
    if path.suffix == ".jsonl":
        return _shape([json.loads(line) for line in text.split("\n") if line.strip()])
    return "text"


def _shape(value):
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return sorted({json.dumps(_shape(item), default=str) for item in value})
    if torch.is_tensor(value):
        return tuple(value.shape), str(value.dtype), bool(torch.isfinite(value.float()).all())
    if isinstance(value, float) and not np.isfinite(value):
        raise ValueError
    return type(value).__name__


def make_canary(folder: Path) -> Path:
    """Where planted code would show; the environment names it."""
    os.environ[CANARY] = str(folder / "canary")
    return folder / "canary"
