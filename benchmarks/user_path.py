"""
What a user's path through a pretrained model costs: generate, 10 steps of HRPO, evaluate 50 problems, each a command.

```bash
python benchmarks/user_path.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --output results/memory/user_path.json
```

Of each command: seconds from its start to its first line and to its end, and peak memory of its process, libraries and
weights included; of HRPO also what its run record says of a step. The same command again leaves out what is done.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import make_parser, setting

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.files import read_json
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.report.tables import markdown_table


def commands(model: str, folder: str, train: list[str], test: list[str]) -> dict[str, list[str]]:
    """The path's commands by name, those of the quickstart."""
    trained = f"{folder}/trained"
    return {
        "generate": [
            *("generate", "--model_name_or_path", model, "--prompts", "The capital of France is"),
            *("--max_new_tokens", "60", "--temperature", "0"),
        ],
        "hrpo": [
            *("hrpo_gsm8k", "--model_name_or_path", model, *train, "--use_peft", "true", "--max_steps", "10"),
            *("--max_completion_length", "96", "--output_dir", trained),
        ],
        "evaluate": [
            *("evaluate_gsm8k", "--model_name_or_path", trained, *test, "--max_samples", "50"),
            *("--max_new_tokens", "96", "--output_dir", f"{folder}/evaluation"),
        ],
    }


def run(command: list[str], threads: int) -> dict:
    """Run a recipe by the command; what it cost."""
    start, first = time.perf_counter(), None
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_evidenceflow.cli", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )
    for line in process.stdout:
        first = time.perf_counter() - start if first is None else first
        print(line, end="", flush=True)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"`{' '.join(command)}` ended with {os.waitstatus_to_exitcode(status)}.")
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds_to_first_line": round(first, 1),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gb": round(usage.ru_maxrss * unit / 1e9, 2),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--folder", help="keeps the trained model and the evaluation (default: a temporary one)")
    parser.add_argument("--train", default="", help="options of hrpo_gsm8k in quotes, such as where the data lies")
    parser.add_argument("--test", default="", help="options of evaluate_gsm8k in quotes")
    args = parser.parse_args(argv)
    known = args.output is not None and args.output.exists()
    results = read_json(args.output) if known else {"setting": setting(args, "user_path", argv), "rows": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder, own = args.folder or temporary, (shlex.split(args.train), shlex.split(args.test))
        for name, command in commands(args.model_name_or_path, folder, *own).items():
            if name in results["rows"]:
                continue
            results["rows"][name] = run(command, args.threads)
            if name == "hrpo":
                results["rows"][name]["costs"] = read_run_record(Path(folder) / "trained")["costs"]
            if args.output:
                atomic_write_json(args.output, results)
    columns = ("seconds_to_first_line", "seconds", "cpu_seconds", "peak_memory_gb")
    cells = [[name, *(str(row[column]) for column in columns)] for name, row in results["rows"].items()]
    print(markdown_table(["command", *columns], cells))
    return results


if __name__ == "__main__":
    main()
