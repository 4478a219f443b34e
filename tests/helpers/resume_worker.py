"""Four optimizer steps of HRPOTrainer with a checkpoint every two; one process may kill itself inside one of them."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from datasets import Dataset
from quiet_training import STEP_BY_STEP
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.run_folder.checkpoints import resolve_output_dir


class KilledTrainer(HRPOTrainer):
    def _save_rng_state(self, output_dir):
        """Inside of saving: the model is written, the rest is not."""
        super()._save_rng_state(output_dir)
        first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first_start and os.environ.get("KILL_AT_STEP") == str(self.state.global_step) and self.args.process_index:
            os.kill(os.getpid(), signal.SIGKILL)


def main(checkpoint, output):
    args = HRPOConfig(
        output_dir=output,
        **STEP_BY_STEP,
        ddp_timeout=60,
        per_device_train_batch_size=2,
        num_generations=2,
        max_steps=4,
        save_steps=2,
        max_completion_length=6,
        learning_rate=1e-3,
        temperature=1.0,
        beta=0.0,
        seed=3,
    )
    resumed = resolve_output_dir(output, "true")
    if args.process_index == 0:
        name = None if resumed is None else Path(resumed).name
        print(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']} from {name}", flush=True)
    torch.manual_seed(5)
    trainer = KilledTrainer(
        load_thinking_model(checkpoint, thinking_residual_r_min=0.5, thinking_residual_r_max=0.6),
        lambda completions, **kwargs: [float(len(text) % 3) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in ("abc", "7+2=", "Ann?", "d")] * 4),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.train(resume_from_checkpoint=resumed)
    Path(output, f"log-{args.process_index}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(*sys.argv[1:])
