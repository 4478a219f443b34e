"""One stage of a course recipe with several: the settings that all its trainers share, and its run."""

import gc
import os
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, Trainer

from hf_evidenceflow.callbacks.log_file import LogFileCallback


def stage_settings(output_dir: str | os.PathLike, seed: int, steps: int, learning_rate: float) -> dict:
    """
    Training arguments of a stage: 64 rows a step, a cosine schedule, a log entry a step.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the stage.
        seed (`int`):
            Seed.
        steps (`int`):
            Optimizer steps.
        learning_rate (`float`):
            Highest learning rate.

    Returns:
        `dict`: keyword arguments.
    """
    return {
        "output_dir": str(output_dir),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "adam_beta2": 0.99,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 64,
        "bf16": torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


# TRL's configurations switch it on; transformers' own do not, and from 5.23 on the name is deprecated there
TRL_SETTINGS = {"gradient_checkpointing": False}


def run_stage(trainer: Trainer) -> dict:
    """
    Train, save, and say how long it took.

    Args:
        trainer ([`~transformers.Trainer`]):
            Trainer of the stage. Its log goes to `log.jsonl` in its folder.

    Returns:
        `dict`: `seconds` of training, and the `log`.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogFileCallback())
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    print(f"{Path(trainer.args.output_dir).name}: {trainer.state.global_step} steps, {seconds:.0f} s", flush=True)
    gc.collect()
    return {"seconds": seconds, "log": trainer.state.log_history}
