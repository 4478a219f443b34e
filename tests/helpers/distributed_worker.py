"""Two optimizer steps of HRPOTrainer on fixed rollouts; each rank saves its first gradients, weights and metrics."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from quiet_training import STEP_BY_STEP
from safetensors.torch import save_file
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model


def fixed_rollouts(config, rows=4, prompt=5, count=6):
    """One global batch; the two halves have unlike numbers of tokens, and a prompt each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (rows, prompt + count), generator=generator)
    ids[1::2, :prompt] = ids[::2, :prompt]
    mask = (torch.arange(count) < torch.tensor([6, 4, 3, 1])[:, None]).long()
    batch = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": ids[:, prompt:],
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -1.0, 2.0, 0.5]),
        "num_items_in_batch": mask.sum(),
        "thinking_states": torch.randn(rows, count, config.hidden_size, generator=generator),
        "thinking_mask": mask.bool(),
    }
    if config.thinking_mode == "tarpo":
        choice = torch.randint(0, 2, (rows, count), generator=generator)
        batch |= {"thinking_choice": choice, "thinking_log_density": torch.zeros(rows, count)}
        batch["thinking_mask"] = batch["thinking_mask"] & (choice == 1)
    return batch


class RecordedTrainer(HRPOTrainer):
    gradients = None

    def _prepare_inputs(self, inputs):
        batch = fixed_rollouts(self.accelerator.unwrap_model(self.model).config)
        size = 4 // self.accelerator.num_processes
        rows = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        return {name: value if value.dim() == 0 else value[rows] for name, value in batch.items()}

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.gradients is None:
            model = self.accelerator.unwrap_model(self.model)
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss


def main(checkpoint, output, processes, update="{}", mode="projection"):
    args = HRPOConfig(
        output_dir=output,
        **STEP_BY_STEP,
        ddp_timeout=60,
        per_device_train_batch_size=4 // int(processes),
        num_generations=2,
        gradient_accumulation_steps=1,
        max_steps=2,
        max_completion_length=6,
        length_buckets=2,
        **json.loads(update),
        save_strategy="no",
        learning_rate=1e-3,
        beta=0.0,
        seed=3,
    )
    torch.manual_seed(5)
    model = load_thinking_model(
        checkpoint, thinking_mode=mode, thinking_residual_r_min=0.5, thinking_residual_r_max=0.6
    )
    trainer = RecordedTrainer(
        model,
        lambda completions, **kwargs: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "abc"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    trainer.train()
    rank = trainer.accelerator.process_index
    weights = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    save_file(trainer.gradients, Path(output, f"gradients-{rank}.safetensors"))
    save_file({n: p.detach().clone() for n, p in weights}, Path(output, f"weights-{rank}.safetensors"))
    Path(output, f"metrics-{rank}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(*sys.argv[1:])
