"""
Peak memory of the first step of HRPO, against the estimate that is made before it, each setting in its own process.

```bash
python benchmarks/step_memory.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --output results/memory/smollm2.json \
    --settings "--use_peft true" "--use_peft true --per_device_train_batch_size 32 --max_completion_length 200"
```

A setting holds options of `recipes/hrpo_gsm8k.py`. No completion ends before `max_completion_length`, as in the
estimate. The peak is that of the process, with libraries and weights.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import make_parser, setting
from transformers import AutoTokenizer

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.recipes import hrpo_gsm8k
from hf_evidenceflow.report.memory import peak_memory


SHARED = ("--max_steps", "1", "--save_strategy", "no", "--report_to", "none", "--plot", "false")
RESULT = "step_memory "


def one_step(args: argparse.Namespace, options: list[str]) -> dict:
    """Train one step in this process."""
    eos = AutoTokenizer.from_pretrained(args.model_name_or_path).eos_token_id
    with tempfile.TemporaryDirectory() as folder:
        trainer = hrpo_gsm8k.main(
            [
                *("--model_name_or_path", args.model_name_or_path, "--output_dir", folder, *SHARED),
                *(("--dataset_name_or_path", args.dataset_name_or_path) if args.dataset_name_or_path else ()),
                *("--generation_kwargs", json.dumps({"suppress_tokens": [eos]}), *options),
            ]
        )
    check, peak = trainer.memory_check, peak_memory()
    row = {part: round(getattr(check.estimate, part) / 1e9, 3) for part in ("rollout", "update", "optimizer")}
    estimated = check.held + check.estimate.peak
    return row | {
        "held": round(check.held / 1e9, 3),
        "estimated_peak": round(estimated / 1e9, 3),
        "measured_peak": round(peak / 1e9, 3),
        "ratio": round(estimated / peak, 3),
    }


def in_a_process(argv: list[str], options: str) -> dict:
    command = [sys.executable, __file__, *argv, "--one", options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not lines:
        return {"error": done.stderr[-1500:]}
    return json.loads(lines[0].removeprefix(RESULT)) | {"seconds": round(time.perf_counter() - start)}


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset_name_or_path", help="GSM8K's train split, from the Hub if not given")
    parser.add_argument(
        "--settings", nargs="+", default=["--use_peft true"], help="options of the recipe, each in quotes"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.one is not None:
        row = one_step(args, shlex.split(args.one))
        print(RESULT + json.dumps(row), flush=True)
        return row
    results = {"setting": setting(args, "step_memory", argv), "rows": {}}
    for options in args.settings:
        results["rows"][options] = in_a_process(argv, options)
        print(options, results["rows"][options], flush=True)
        if args.output:
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
