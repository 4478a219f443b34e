"""
HRPO with rollouts on vLLM in the trainer's process against HRPO on the rollout engine: rewards and parity.

```bash
make .venv-vllm/.installed
.venv-vllm/bin/python benchmarks/vllm_training.py --output results/integrations/vllm_training.json
```

A random Qwen2 (hidden 128, 3 layers, vocabulary 512) in fp32, 20 steps of 8 prompts x 8 completions of 24 tokens, the
same settings and start on both sides; the reward is the share of tokens with a small id, which a random model raises
within 20 steps. On CPUs vLLM leaves its linear layers unpacked here (`tests/vllm/harness`), or it could not take
weights while it runs. Both sides draw by their own generators, so that runs of one seed differ as those of two seeds
do: the means over seeds are compared.
"""

import statistics
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "vllm" / "harness"))
import engines
import on_cpu  # noqa: F401
import torch
from datasets import Dataset
from timing import make_parser, prepare, setting
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_evidenceflow.atomic_write import atomic_write_json


VOCABULARY = 512
PROMPTS = ["abc", "hello", "x", "tea time", "zebra", "one two", "q", "end"]
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "parity_gap": "thinking/parity_gap",
    "gate_mean": "thinking/gate_mean",
    "difference": "sampling/sampling_logp_difference/max",
}


def make_tokenizer():
    """A token for each id."""
    tokens = ["<pad>", "</s>", "<s>", *"abcdefghijklmnopqrstuvwxyz# "]
    tokens += [f"w{index}" for index in range(VOCABULARY - len(tokens))]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left")


def small_ids(completion_ids, **kwargs) -> list[float]:
    """Share of tokens below the middle of the vocabulary."""
    return [sum(token < VOCABULARY // 2 for token in row) / max(len(row), 1) for row in completion_ids]


def train(folder: str, mode: str, steps: int, seed: int, with_vllm: bool, use_cpu=True) -> dict[str, list[float]]:
    """Logged values by step."""
    from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model

    args = HRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=use_cpu,
        bf16=not use_cpu,
        per_device_train_batch_size=64,
        num_generations=8,
        max_steps=steps,
        max_completion_length=24,
        temperature=1.0,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1.0,
        beta=0.0,
        seed=seed,
        logging_steps=1,
        parity_check_steps=1,
        parity_tolerance=1e-4 if use_cpu else 1e9,  # on a GPU it is measured
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        use_vllm=with_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=64,
        vllm_engine_kwargs=engines.ON_CPU if use_cpu else None,
    )
    trainer = HRPOTrainer(
        load_thinking_model(folder, thinking_mode=mode, dtype=torch.float32),
        small_ids,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    if with_vllm:
        engines.close(trainer.vllm_generation.llm)
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    return {name: [entry[key] for entry in history if key in entry] for name, key in LOGGED.items()}


def summary(runs: dict[str, list[dict]]) -> dict[str, float]:
    """Mean rewards of a run, their difference, and its standard error over the seeds."""
    means = {name: [statistics.fmean(run["reward"]) for run in of_seeds] for name, of_seeds in runs.items()}
    vllm, engine = means.values()
    return {
        **{name: statistics.fmean(values) for name, values in means.items()},
        "difference": statistics.fmean(vllm) - statistics.fmean(engine),
        "standard_error": sum(statistics.variance(values) / len(values) for values in means.values()) ** 0.5,
        "largest_parity_gap": max(gap for run in runs["vLLM"] for gap in run["parity_gap"]),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--mode", default="projection")
    args = parser.parse_args(argv)
    prepare(args)
    fields = {"vocab_size": VOCABULARY, "thinking_answer_start": None}
    folder = engines.make_checkpoint(tempfile.mkdtemp(), make_tokenizer(), **fields)
    runs = {
        name: [train(folder, args.mode, args.steps, seed, name == "vLLM") for seed in args.seeds]
        for name in ("vLLM", "RolloutEngine")
    }
    results = {"setting": setting(args, "vllm_training", argv), "summary": summary(runs), "runs": runs}
    for name, value in results["summary"].items():
        print(f"{name:20} {value:.3g}")
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
