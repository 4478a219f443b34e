"""The tiny runs that are stopped: a checkpoint and problems made on the spot, and the recipes' arguments."""

import gc
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from random import Random

import yaml
from chaos_processes import ROOT, Job, run_job


STEPS = 10
HRPO = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 4,
    "max_steps": STEPS,
    "save_steps": 3,
    "save_total_limit": 2,
    "logging_steps": 2,
    "max_completion_length": 12,
    "max_samples": 40,
    "temperature": 1.0,
    "beta": 0.0,
    "learning_rate": 1e-3,
    "warmup_steps": 3,
    "parity_check_steps": 3,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 7,
}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
PRETRAINING = {
    "model_type": "llama",
    "config_overrides": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "attention_dropout": 0.1,
    },
    "train_vocab_size": 300,
    "generated_documents": 150,
    "block_size": 32,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 5,
    "max_eval_samples": 23,
    "max_steps": STEPS,
    "save_steps": 3,
    "save_total_limit": 2,
    "logging_steps": 2,
    "eval_steps": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 3,
    "evidence_objective": "mse",
    "use_cpu": True,
    "disable_tqdm": True,
    "plot": True,
    "seed": 7,
}
GRID = {
    "name": "chaos",
    "recipe": "recipes/pretrain_clm.py",
    "overrides": {"plot": False},
    "axes": {"arm": {"none": {"evidence_objective": None}, "mse": {"evidence_objective": "mse"}}},
    "seeds": [0],
    "baseline": {"arm": "none"},
    "metrics": ["eval_loss", "eval_accuracy"],
}
RECIPES = {
    "hrpo": "recipes/hrpo_gsm8k.py",
    "hrpo_lora": "recipes/hrpo_gsm8k.py",
    "clm": "recipes/pretrain_clm.py",
    "experiment": "recipes/run_experiment.py",
}


def preload() -> None:
    """Import what the recipes import, so that a fork starts at once."""
    import torch

    import hf_evidenceflow

    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "recipes"))
    recipes = ("hrpo_gsm8k", "pretrain_clm", "run_experiment", "train_from_scratch")
    for name in ("matplotlib.pyplot", "transformers.trainer", "trl.trainer.grpo_trainer", *recipes):
        importlib.import_module(name)
    sys.path.pop(0)
    for name in hf_evidenceflow.__all__:
        getattr(hf_evidenceflow, name)
    gc.freeze()  # else each fork looks through it and copies it when it collects


def write_settings(work: Path) -> None:
    """Make the checkpoint of HRPO's runs and the config files of all recipes in the work folder."""
    if (work / "experiment.yaml").exists():
        return
    problems, scratch = work / "problems.jsonl", work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    # The model learns to answer 1 or 2 at random, so that rewards differ and there is something to learn
    draws = Random(0)
    rows = [{"question": f"{number} or 3?", "answer": f"It is\n#### {draws.choice((1, 2))}"} for number in range(40)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["--config", str(ROOT / "recipes/configs/train_from_scratch/smoke.yaml"), "--output_dir", str(scratch)]
    sizes = ["--max_steps", "80", "--hidden_size", "24", "--intermediate_size", "40", "--learning_rate", "1e-2"]
    arguments = [*base, *sizes, "--dataset_name_or_path", str(problems)]
    made = run_job(Job("recipes/train_from_scratch.py", arguments), work / "scratch.log", work / "scratch.trace")
    if made.returncode:
        raise RuntimeError(f"The checkpoint could not be made, see {work / 'scratch.log'}.")
    hrpo = HRPO | {"model_name_or_path": str(scratch), "dataset_name_or_path": str(problems)}
    configs = {"hrpo": hrpo, "hrpo_lora": hrpo | LORA, "clm": PRETRAINING}
    configs["experiment"] = GRID | {"config": str(work / "clm.yaml")}
    for name, config in configs.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def make_job(work: Path, setting: str, kind: str, processes: int, output: Path, *further: str) -> Job:
    """The job of a setting; `further` are options behind the others."""
    arguments = ["--config", str(work / f"{setting}.yaml"), "--output_dir", str(output)]
    if setting == "experiment":
        arguments += ["--launcher", "python", "--jobs", "2"]
    return Job(RECIPES[setting], [*arguments, *further], kind, processes)


def clean_environment(work: Path) -> None:
    """One thread, offline, and caches of our own: a killed process may leave a lock in them."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "cache"),
        "MPLBACKEND": "agg",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # else gloo waits for the addresses of dead processes
    }


def requeue_options(setting: str) -> list[str]:
    """What the one command that survives a requeue has behind the settings."""
    return [] if setting == "experiment" else ["--resume_from_checkpoint", "auto"]


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))
