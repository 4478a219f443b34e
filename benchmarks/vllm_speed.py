"""
Tokens a second of rollouts: vLLM without and with thinking, the rollout engine, and the stock loop, in one process.

```bash
make .venv-vllm/.installed
.venv-vllm/bin/python benchmarks/vllm_speed.py --output results/integrations/vllm_speed.json
```

Model and load are those of `rollout_speed.py`: a random Qwen2 (hidden 512, 8 layers, vocabulary 32,000) in fp32,
sampling at temperature 1, prompts as long as GSM8K's and completions as its solutions, both divided by `--divide`. On
CPUs vLLM's V2 runner has no kernels for its bookkeeping: those of `tests/vllm/harness` stand in, which are slower,
with and without thinking alike. So what this says is what thinking costs vLLM, not what vLLM gains; that needs a GPU.
The states of each rollout are taken out of vLLM, as a trainer does.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm" / "harness"))
import engines
import on_cpu  # noqa: F401
from rollout_speed import generate, make_load, make_model
from timing import compare, make_parser, prepare, print_table, setting

from hf_evidenceflow import RolloutEngine
from hf_evidenceflow.atomic_write import atomic_write_json


MODES = ("none", "projection", "embedding")


def make_engine(model, mode: str, rows: int):
    """An engine of vLLM for a model's weights."""
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    llm = engines.make_engine(
        folder,
        hf_overrides={"thinking_mode": mode},
        skip_tokenizer_init=True,
        max_num_seqs=rows,
        max_model_len=1024,
        kv_cache_memory_bytes=512 * 2**20,
    )
    if mode != "none":
        engines.model_state(llm).records.keeps = True
    return llm


def generate_with_vllm(llm, load, mode: str):
    """One rollout of vLLM, with the states of all completions."""
    from vllm import SamplingParams

    from hf_evidenceflow.integrations.vllm.worker import take_thinking

    ids, mask, lengths = load
    prompts = [{"prompt_token_ids": row[kept.bool()].tolist()} for row, kept in zip(ids, mask)]
    parameters = [
        SamplingParams(max_tokens=count, ignore_eos=True, detokenize=False, logprobs=0, seed=index)
        for index, count in enumerate(lengths.tolist())
    ]
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    if mode != "none":
        take_thinking(engines.model_state(llm), engines.lengths_of(outputs))
    return outputs


def parse(argv=None):
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--divide", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    prepare(args)
    load = make_load(args.prompts, args.group, args.divide)
    model = make_model("projection")
    candidates = {
        "stock, projection": partial(generate, model, load),
        "RolloutEngine, projection": lambda: generate(model, load, RolloutEngine()),
    }
    for mode in MODES:
        llm = make_engine(model, mode, len(load[0]))
        candidates[f"vLLM, {mode}"] = partial(generate_with_vllm, llm, load, mode)
    rows = compare(candidates, args.rounds)
    for row in rows.values():
        row["tokens_per_second"] = round(int(load[2].sum()) / row["seconds"], 1)
    print_table(f"{args.prompts} prompts x {args.group}, lengths / {args.divide}", rows)
    results = {"setting": setting(args, "vllm_speed", argv), "tokens": int(load[2].sum()), "table": rows}
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
