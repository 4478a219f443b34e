"""
Loops blocks of a pretrained model without training, naively and in damped steps, and compares perplexities.

```bash
python benchmarks/looped_perplexity.py --model HuggingFaceTB/SmolLM2-135M-Instruct --text_file wt2_test.txt \
    --output results/loops/training_free.json
```

Each block starts and ends where `--blocks` says; `damped layers` loops each layer of a block by itself. The gap is how
far the mean loss is above the plain model's on the same tokens, with its standard error.
"""

import argparse
import time
from pathlib import Path

import torch

from hf_evidenceflow import load_looped_model
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.evaluation.perplexity import next_token_losses
from hf_evidenceflow.report.tables import markdown_table


@torch.no_grad()
def losses_of(model, rows):
    """Losses of all tokens, `[N]`."""
    return torch.cat([next_token_losses(model, row[None])[0].flatten() for row in rows]).double()


def loop(model, start, end, num_loops, way):
    """The model itself, with another block of it looped."""
    blocks = [[layer, layer + 1] for layer in range(start, end)] if way == "damped layers" else [[start, end]]
    model.config.loop_blocks, model.config.loop_damping = blocks, way != "naive"
    model.set_num_loops(num_loops)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text_file", required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--block_size", type=int, default=256)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 6, 10, 14, 18, 22, 26])
    parser.add_argument("--num_loops", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--output", required=True)
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.model)
    text = Path(args.text_file).read_text(encoding="utf-8")[: args.tokens * 20]
    rows = torch.tensor(tokenizer(text)["input_ids"][: args.tokens]).split(args.block_size)
    model = load_looped_model(args.model).eval()
    plain = losses_of(model, rows)
    results = []
    for start, end in zip(args.blocks, args.blocks[1:]):
        for num_loops in args.num_loops:
            for way in ("naive", "damped", "damped layers"):
                began = time.perf_counter()
                loop(model, start, end, num_loops, way)
                losses = losses_of(model, rows)
                gap = losses - plain
                error = (gap.std() / len(gap) ** 0.5).item()
                results.append(
                    {"block": [start, end], "num_loops": num_loops, "way": way}
                    | {"perplexity": losses.mean().exp().item(), "gap": gap.mean().item(), "error": error}
                    | {"seconds": time.perf_counter() - began}
                )
                print(results[-1], flush=True)
    record = {"settings": vars(args) | {"text_file": Path(args.text_file).name, "model": Path(args.model).name}}
    record |= {"tokens": len(plain), "plain_perplexity": plain.mean().exp().item(), "results": results}
    atomic_write_json(args.output, record)
    head = ["block", "loops", "way", "perplexity", "gap in nats"]
    table = []
    for row in results:
        gap = f"{row['gap']:+.4f} ± {row['error']:.4f}"
        block = "{}-{}".format(*row["block"])
        table.append([block, row["num_loops"], row["way"], f"{row['perplexity']:.2f}", gap])
    print(f"plain {record['plain_perplexity']:.2f}", markdown_table(head, table), sep="\n")


if __name__ == "__main__":
    main()
