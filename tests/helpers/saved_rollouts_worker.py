"""HRPOTrainer with four steps on each rollout; two processes resume from checkpoints that hold unused rollouts."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model


class RecordsPlaces:
    """Notes at which steps it generates."""

    def _generate_and_score_completions(self, inputs):
        self.rollout_places.append(self._step)
        return super()._generate_and_score_completions(inputs)


class RecordedTrainer(RecordsPlaces, HRPOTrainer):
    pass


def make_trainer(
    checkpoint,
    output,
    trainer=RecordedTrainer,
    config=HRPOConfig,
    mode="projection",
    rows=64,
    data=None,
    reward=None,
    **settings,
):
    settings = {
        "per_device_train_batch_size": 2,
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 1,
        "num_generations": 2,
        "max_steps": 6,
        "save_steps": 2,
        "beta": 0.0,
        "max_completion_length": 5,
        "temperature": 1.0,
        **settings,
    }
    args = config(
        output_dir=str(output),
        use_cpu=True,
        ddp_timeout=60,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        gradient_checkpointing=False,
        learning_rate=1e-3,
        seed=3,
        **settings,
    )
    prompts = ["abc", "7+2=", "Ann?", "d", "Tom has 3"]
    torch.manual_seed(5)
    made = trainer(
        load_thinking_model(checkpoint, thinking_mode=mode, thinking_residual_r_min=0.5, thinking_residual_r_max=0.6),
        reward or (lambda completions, **kwargs: [float(len(text) % 3) for text in completions]),
        args=args,
        train_dataset=data or Dataset.from_list([{"prompt": prompts[row % 5]} for row in range(rows)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    made.rollout_places, made.tokenizer_path = [], checkpoint
    return made


class Warnings(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        if "fresh rollouts" in record.getMessage():
            self.messages.append(record.getMessage())


def main(checkpoint, output, one):
    """Two processes; `one` is a checkpoint of one process."""
    output, found, warnings = Path(output), {}, Warnings()
    logging.getLogger().addHandler(warnings)

    def train(name, resumed=None, **settings):
        warnings.messages.clear()
        trainer = make_trainer(checkpoint, output / name, **settings)
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
        found[name] = {
            "places": trainer.rollout_places,
            "losses": {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry},
            "step": trainer.state.global_step,
            "warnings": list(warnings.messages),
        }
        return trainer.accelerator

    accelerator = train("whole")
    own = output / "whole" / "checkpoint-2"
    if accelerator.is_main_process:
        for name in ("missing", "cut"):
            shutil.copytree(own, output / name)
        (output / "missing" / "rollouts_1.pt").unlink()
        os.truncate(output / "cut" / "rollouts_1.pt", 1000)
    accelerator.wait_for_everyone()
    train("own", own, save_strategy="no")
    train("file of rank 1 missing", output / "missing", save_strategy="no")
    train("file of rank 1 cut", output / "cut", save_strategy="no")
    train("one process's", one, save_strategy="no")
    (output / f"{accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
