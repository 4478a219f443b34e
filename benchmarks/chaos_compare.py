"""Compares what a stopped and resumed run left with what the same run left that nothing stopped."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals


# Times, speeds and memory; and `owed`: what a checkpoint that SIGTERM asked for leaves to the resumed run, whose
# outcome is compared
VOLATILE = re.compile(
    r"seconds|runtime|per_second|step_time|memory|mem_|timestamp|^(started|ended|pid|host|git|command|previous|owed)$"
)
MODEL_FILES = ("*.safetensors", "config.json", "generation_config.json", "adapter_config.json", "tokenizer*.json")
CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
# Of which a checkpoint may have one or not, depending on the step
OPTIONAL = re.compile(r"^rollouts")
SHOWN = 8


def checkpoints(folder: Path) -> dict[int, Path]:
    """The folders under a checkpoint's final name, by step."""
    found = {}
    if folder.is_dir():
        for path in folder.iterdir():
            if match := CHECKPOINT.match(path.name):
                found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def broken_checkpoints(folder: Path, like: Path) -> list[str]:
    """What is wrong with the checkpoints of a folder, each of which should have the files of `like`."""
    wanted = {path.name for path in like.iterdir() if not OPTIONAL.match(path.name)}
    problems = []
    for step, path in checkpoints(folder).items():
        try:
            names = {entry.name for entry in path.iterdir() if not OPTIONAL.match(entry.name)}
            if names != wanted:
                problems.append(f"{path.name}: files differ, {sorted(names ^ wanted)}")
            read = read_folder(path)
            if (found := read["trainer_state.json"]["global_step"]) != step:
                problems.append(f"{path.name}: its step is {found}")
        except Exception as error:
            problems.append(f"{path.name}: {type(error).__name__}: {str(error)[:200]}")
    return problems


def read_folder(folder: Path) -> dict[str, Any]:
    """Tensors, states and JSON of a checkpoint, by file name."""
    content = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            content[path.name] = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            with safe_globals():
                content[path.name] = torch.load(path, map_location="cpu", weights_only=True)
        elif path.suffix == ".json" and "manifest" not in path.name:
            content[path.name] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_run(folder: Path) -> dict[str, Any]:
    """All of a training run that a stop must not change."""
    kept = checkpoints(folder)
    content: dict[str, Any] = {"checkpoints": list(kept)}
    if kept:
        content["last checkpoint"] = read_folder(list(kept.values())[-1])
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    for path in sorted(files):
        is_json = path.suffix == ".json"
        content[path.name] = json.loads(path.read_text(encoding="utf-8")) if is_json else load_file(path)
    content["trainer_state.json"] = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    if (folder / "log.jsonl").exists():
        rows = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        content["log.jsonl"] = [json.loads(row) for row in rows]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    content["run.json"] = {name: record.get(name) for name in ("status", "metrics", "seeds")}
    content["others"] = sorted(path.name for path in folder.iterdir() if not CHECKPOINT.match(path.name))
    return content


def read_experiment(folder: Path) -> dict[str, Any]:
    """All of an experiment that a stop must not change."""
    content = {path.name: read_run(path) for path in sorted((folder / "runs").iterdir()) if path.is_dir()}
    rows = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    content["results.jsonl"] = [json.loads(row) for row in rows]
    summary = json.loads((folder / "report/summary.json").read_text(encoding="utf-8"))
    # What is compared at equal time is at other steps each time
    rows = [row for row in summary["comparisons"] if row["basis"] != "equal_wall_clock"]
    missing = [line for line in summary["missing"] if "wall-clock" not in line]
    content["summary.json"] = summary | {"comparisons": rows, "missing": missing}
    content["report"] = sorted(path.name for path in (folder / "report").iterdir())
    return content


def differences(found: Any, expected: Any, roots: tuple[str, str], place: str = "") -> list[str]:
    """Each place where two contents differ, with both values; times, speeds and memory are left out."""
    if isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name in {**expected, **found} if not VOLATILE.search(str(name))]
        result = []
        for name in names:
            if name not in found or name not in expected:
                result.append(f"{place}/{name}: only in the {'uninterrupted' if name in expected else 'stopped'} run")
            else:
                result += differences(found[name], expected[name], roots, f"{place}/{name}")
        return result
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return [f"{place}: {len(found)} entries, {len(expected)} expected: {_short(found)} / {_short(expected)}"]
        pairs = enumerate(zip(found, expected))
        return [line for i, (a, b) in pairs for line in differences(a, b, roots, f"{place}[{_name_of(b, i)}]")]
    if torch.is_tensor(found) and torch.is_tensor(expected):
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return [f"{place}: {found.dtype} {tuple(found.shape)}, expected {expected.dtype} {tuple(expected.shape)}"]
        if torch.equal(found, expected):
            return []
        return [f"{place}: differs by {(found.double() - expected.double()).abs().max().item():.3g} at most"]
    if hasattr(found, "tolist") and hasattr(expected, "tolist"):  # NumPy's random state
        return [] if found.tolist() == expected.tolist() else [f"{place}: differs"]
    if isinstance(found, str) and isinstance(expected, str):
        found, expected = found.replace(roots[0], ""), expected.replace(roots[1], "")
    if found == expected or (isinstance(found, float) and isinstance(expected, float) and math.isnan(found)):
        return []
    return [f"{place}: {_short(found)}, expected {_short(expected)}"]


def _name_of(entry: Any, index: int) -> str:
    return f"{index}, step {entry['step']}" if isinstance(entry, dict) and "step" in entry else str(index)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
