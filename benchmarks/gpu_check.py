"""
What only a GPU can tell: parity in fp32 and bf16, static caches and CUDA graphs, rollouts, and a step against TRL's.

```bash
python benchmarks/gpu_check.py --output results/gpu/check.json
```

At most 16 minutes on one CUDA GPU, half of them for vLLM; each part that has not begun by `--seconds` is left out and
named. A part that fails is written down with its error, and the others run. `--size tiny --device cpu` runs all of it
in little. It has run on CPUs only.

Parts: `parity`, gaps between the log-probabilities of a rollout and of the update, for each way of thinking and
precision; `decoding`, tokens a second of stock `generate` with a dynamic cache, a static one and a compiled one (CUDA
graphs), and whether their tokens agree; `rollout`, the engine against the stock loop; `step`, a step of HRPO with
shared prompts and in buckets against TRL's GRPO; `latent`, the sequential latent pass against the parallel one;
`vllm`, the parts of `vllm_check.py` in a process of `--vllm_python`, left out where that one has no vLLM. `--parts`
chooses parts, `--skip` leaves some out.
"""

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from rollout_speed import generate, make_load, make_model
from rollout_step import measure as measure_steps
from thinking_speed import SIZE, make_tokenizer
from timing import compare, has_failed, make_parser, prepare, run_parts, setting

from hf_evidenceflow import HRPOConfig, HRPOTrainer, RolloutEngine, ThinkingQwen2Config, ThinkingQwen2ForCausalLM


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODES = ("projection", "embedding", "soft")


def thinking_model(mode: str, tiny: bool, device: str, dtype=torch.float32):
    """A random thinking model whose gates are wide, so that a wrong state shows."""
    torch.manual_seed(0)
    size = SIZE | (TINY if tiny else {})
    wide = {"thinking_residual_r_min": 0.5, "thinking_residual_r_max": 0.6, "thinking_answer_start": None}
    config = ThinkingQwen2Config(**size, **wide, thinking_mode=mode)
    return ThinkingQwen2ForCausalLM(config).to(device, dtype).eval()


def parity(tiny: bool, device: str) -> dict:
    """Largest parity gaps of two steps."""
    gaps = {}
    tokenizer = make_tokenizer()
    for mode in MODES:
        for precision in ("fp32", "bf16"):
            for shared in (True, False):
                args = HRPOConfig(
                    output_dir=tempfile.mkdtemp(),
                    use_cpu=device == "cpu",
                    bf16=precision == "bf16",
                    per_device_train_batch_size=8,
                    max_completion_length=8 if tiny else 64,
                    max_steps=2,
                    temperature=1.0,
                    beta=0.0,
                    learning_rate=1e-4,
                    logging_steps=1,
                    parity_check_steps=1,
                    parity_tolerance=1e9,  # measured here, not enforced
                    train_thought_tokens=True,
                    share_prompts_in_update=shared,
                    report_to="none",
                    save_strategy="no",
                    disable_tqdm=True,
                )
                trainer = HRPOTrainer(
                    thinking_model(mode, tiny, device),
                    lambda completions, **kwargs: [float(index % 3) for index in range(len(completions))],
                    args=args,
                    train_dataset=Dataset.from_dict({"prompt": ["abcdefgh", "xyz", "hello there", "a"] * 4}),
                    processing_class=tokenizer,
                )
                trainer.train()
                rows = [row for row in trainer.state.log_history if "thinking/parity_gap" in row]
                gaps[f"{mode} {precision} {'shared' if shared else 'buckets'}"] = {
                    "largest": max(row["thinking/parity_gap"] for row in rows),
                    "mean": max(row["thinking/parity_gap_mean"] for row in rows),
                }
    return gaps


def decoding(tiny: bool, device: str) -> dict:
    """Tokens a second of stock `generate` by kind of cache, and whether the tokens are those of the dynamic one."""
    new = 8 if tiny else 256
    found = {}
    for mode in ("none", *MODES):
        model = thinking_model(mode, tiny, device, torch.float32 if tiny else torch.bfloat16)
        ids = torch.randint(2, SIZE["vocab_size"], (8, 16), device=device)
        options = {
            "max_new_tokens": new,
            "min_new_tokens": new,
            "do_sample": False,
            "attention_mask": ids.new_ones(ids.shape),
        }
        tokens = {}

        def run(cache, compiled, model=model, ids=ids, options=options, tokens=tokens):
            own = {} if cache is None else {"cache_implementation": cache, "disable_compile": not compiled}
            tokens[cache, compiled] = model.generate(ids, **options, **own)
            if device == "cuda":
                torch.cuda.synchronize()

        kinds = {"dynamic": (None, False), "static": ("static", False)}
        if device == "cuda":
            kinds["static, compiled"] = ("static", True)
        rows = compare({name: partial(run, *kind) for name, kind in kinds.items()}, 2)
        for name, kind in kinds.items():
            rows[name]["tokens_per_second"] = round(8 * new / rows[name]["seconds"], 1)
            rows[name]["same_tokens"] = round((tokens[kind] == tokens[None, False]).float().mean().item(), 4)
        found[mode] = rows
    return found


def rollout(tiny: bool, device: str) -> dict:
    """The engine against the stock loop."""
    found = {}
    for mode in ("none", "projection"):
        load = [tensor.to(device) for tensor in make_load(*((2, 2, 20) if tiny else (8, 8, 1)))]
        model = thinking_model(mode, True, device) if tiny else make_model(mode).to(device, torch.bfloat16)
        stock, engine = partial(generate, model, load), partial(generate, model, load, RolloutEngine())
        rows = compare({"stock": stock, "engine": engine}, 1)
        for row in rows.values():
            row["tokens_per_second"] = round(int(load[2].sum()) / row["seconds"], 1)
        found[mode] = rows
    return found


def step(tiny: bool, device: str) -> dict:
    """A step of HRPO against TRL's GRPO."""
    args = Namespace(
        modes=["grpo", "buckets", "shared"],
        thinking="projection",
        size="base",
        divide=20 if tiny else 1,
        rounds=1,
        memory=False,
    )
    return measure_steps(args, "gsm8k", 2 if tiny else 8, 2 if tiny else 8, use_cpu=device == "cpu")


def latent(tiny: bool, device: str) -> dict:
    """Forward and backward with 8 thoughts, one after the other and over target states."""
    model = thinking_model("soft", tiny, device)
    ids = torch.randint(2, SIZE["vocab_size"], (4 if tiny else 16, 48), device=device)
    mask = torch.zeros(ids.shape, dtype=torch.bool, device=device)
    mask[:, 32:40] = True
    targets = ids[:, 32:40, None], torch.ones(*ids[:, 32:40].shape, 1, device=device)

    def run(targets):
        model(ids, latent_mask=mask, latent_targets=targets).logits.float().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return compare({"parallel": partial(run, targets), "sequential": partial(run, None)}, 3)


def vllm(tiny: bool, device: str, python: str = sys.executable) -> dict:
    """What `vllm_check.py` finds, by part; `python` is the interpreter that has vLLM."""
    if subprocess.run([python, "-c", "import vllm"], capture_output=True).returncode:
        return {"left_out": f"{python} has no vLLM"}
    output = Path(tempfile.mkdtemp()) / "vllm.json"
    status = subprocess.run([python, Path(__file__).with_name("vllm_check.py"), "--output", output]).returncode
    if not output.exists():
        raise RuntimeError(f"vllm_check.py ended with exit code {status} before its first part")
    found = json.loads(output.read_text(encoding="utf-8"))["parts"]
    return found | ({"error": f"exit code {status}"} if status else {})


PARTS = {part.__name__: part for part in (parity, decoding, rollout, step, latent, vllm)}


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--skip", nargs="+", choices=tuple(PARTS), default=[], help="parts that are left out")
    parser.add_argument("--vllm_python", default=sys.executable, help="interpreter of the environment with vLLM")
    parser.add_argument("--seconds", type=float, default=420, help="no part begins later than this")
    args = parser.parse_args(argv)
    prepare(args)
    device = {"name": "cpu"}
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        device = {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    results = {"setting": setting(args, "gpu_check", argv), "device": device}
    parts = {name: partial(PARTS[name], args.size == "tiny", args.device) for name in args.parts}
    if "vllm" in parts:
        parts["vllm"] = partial(parts["vllm"], python=args.vllm_python)
    parts = {name: part for name, part in parts.items() if name not in args.skip}
    return run_parts(parts, results, args.output, args.seconds)


if __name__ == "__main__":
    sys.exit(has_failed(main()))
