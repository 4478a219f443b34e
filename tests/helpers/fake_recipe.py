"""A recipe that only pretends to train: it takes what the runner passes and writes what a recipe writes."""

import argparse
import json
import math
import random
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path

import yaml


DEFAULTS = {
    "max_steps": 40,
    "eval_steps": 4,
    "learning_rate": 0.01,
    "effect": 0.0,
    "cost": 1.0,
    "seconds": 0.0,
    "nested": {},
    "fail_until": None,
    "samples": False,
    "report_to": "none",
}


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # saves a checkpoint, as at Ctrl-C
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--resume_from_checkpoint")
    args = parser.parse_args()
    options = yaml.safe_load(Path(args.config).read_text())
    if unknown := set(options) - set(DEFAULTS):
        sys.exit(f"unknown options {unknown}")
    options = DEFAULTS | options
    folder, rng = args.output_dir, random.Random(args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"status": "running", "command": " ".join(sys.argv), "git": "0123abc", "versions": {}, "options": options}
    record["resumed"] = args.resume_from_checkpoint == "true"
    if record["resumed"]:
        options["seconds"] = 0.0  # little is left
    write(folder / "run.json", record)
    if options["fail_until"] and not Path(options["fail_until"]).exists():
        print("this run <fails>")
        sys.exit(3)
    noise, history, own = rng.gauss(0, 0.02), [], random.Random(f"{args.seed} {options['effect']} {options['cost']}")
    try:
        for step in range(options["eval_steps"], options["max_steps"] + 1, options["eval_steps"]):
            time.sleep(options["seconds"] * options["eval_steps"] / options["max_steps"])
            loss = 2 + 4 / step + options["effect"] + noise + 0.3 * abs(math.log10(options["learning_rate"]) + 2)
            loss += own.gauss(0, 0.004)
            row = {"step": step, "epoch": step / 10, "train_seconds": 0.5 * step * options["cost"]}
            row |= {"train_tokens": 64 * step, "eval_loss": loss, "eval_accuracy": 0.5 - loss / 10}
            history.append({"step": step, "epoch": step / 10, "loss": loss - 0.1})
            history.append(row)
            with open(folder / "log.jsonl", "a") as log:
                log.writelines(json.dumps(entry) + "\n" for entry in history[-2:])
    except KeyboardInterrupt:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            zipfile.ZipFile(checkpoint / name, "w").close()
        write(checkpoint / "config.json", {})
        write(checkpoint / "trainer_state.json", {"global_step": step, "log_history": history})
        write(folder / "run.json", record | {"status": "interrupted"})
        raise
    write(folder / "trainer_state.json", {"log_history": history})
    if options["samples"]:
        rows = ({"id": i, "correct": int(rng.random() < 0.5 - options["effect"])} for i in range(100))
        (folder / "eval_samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {name: row[name] for name in ("eval_loss", "eval_accuracy", "train_seconds", "train_tokens")}
    write(folder / "run.json", record | {"status": "finished", "metrics": metrics})


def write(path, data):
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    temporary.replace(path)


if __name__ == "__main__":
    main()
