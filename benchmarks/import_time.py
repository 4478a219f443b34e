"""
Time of importing hf_evidenceflow against importing the transformers classes that it builds on, in new processes.

```bash
python benchmarks/import_time.py --output results/import_time.json
```
"""

import argparse
import json
import statistics
import subprocess
import sys


PLAIN = "from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM"
OURS = "import hf_evidenceflow"


def seconds(statement: str) -> float:
    script = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument(
        "--rounds", type=int, default=11, help="processes of each kind, in turn (default: %(default)s)"
    )
    args = parser.parse_args()
    for statement in (PLAIN, OURS):
        seconds(statement)
    pairs = [(seconds(PLAIN), seconds(OURS)) for _ in range(args.rounds)]
    result = {
        "transformers_seconds": round(statistics.median(plain for plain, _ in pairs), 3),
        "hf_evidenceflow_seconds": round(statistics.median(ours for _, ours in pairs), 3),
        "ratio": round(statistics.median(ours / plain for plain, ours in pairs), 3),
        "rounds": args.rounds,
    }
    print(json.dumps(result, indent=2))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
