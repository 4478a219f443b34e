"""
Trains HRPOTrainer with weights that accelerate shards (FSDP2 or DeepSpeed), on CPU processes, through a checkpoint.

accelerate shards on accelerators only; here it is told that two CPU processes with gloo are some.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from distributed_worker import RecordedTrainer
from peft import LoraConfig
from transformers import AutoTokenizer, training_args

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model


UNSHARDED = ("one", "ddp")
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def shard_on_cpu(strategy):
    """As `accelerate launch` would for accelerators, with its own code from there on."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if strategy == "fsdp2":
        os.environ |= FSDP2
    if strategy.startswith("zero"):
        os.environ |= {
            "DS_ACCELERATOR": "cpu",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": strategy[-1],
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        }
    if strategy not in UNSHARDED:
        kind = DistributedType.MULTI_GPU
        training_args.is_torch_bf16_gpu_available = lambda: True
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", kind)


def make_trainer(trainer_class, checkpoint, output, strategy, mode, bf16=False, adapter=False, rows=2, **settings):
    args = HRPOConfig(
        output_dir=str(output),
        use_cpu=strategy in UNSHARDED,
        bf16=bf16,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=rows,
        num_generations=2,
        max_steps=2,
        max_completion_length=6,
        length_buckets=2,
        logging_steps=1,
        gradient_checkpointing=False,
        learning_rate=0.5,
        lr_thinking_residual_gate=0.5,
        lr_thinking_projection=0.5,
        adam_epsilon=1.0,  # updates then follow the gradients, and differ no more than these
        lr_scheduler_type="constant",
        beta=0.0,
        seed=3,
        **settings,
    )
    torch.manual_seed(5)
    model = load_thinking_model(
        checkpoint, thinking_mode=mode, thinking_residual_r_min=0.5, thinking_residual_r_max=0.6
    )
    return trainer_class(
        model.to(torch.bfloat16) if bf16 else model,
        lambda completions, **kwargs: [float(len(text) % 3) for text in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in ("abc", "7+2=", "Ann?", "d")] * 4),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "up_proj"]) if adapter else None,
    )


def main(checkpoint, output, strategy, mode, kind):
    """
    Two steps with a checkpoint each, and the second of them once more from the first checkpoint. Whole models in fp32
    also take two steps on fixed rollouts; in one process only these.
    """
    shard_on_cpu(strategy)
    make = partial(
        make_trainer,
        checkpoint=checkpoint,
        strategy=strategy,
        mode=mode,
        bf16="bf16" in kind,
        adapter="adapter" in kind,
    )
    if kind == "fp32":
        rows = 4 if strategy == "one" else 2
        trainer = make(RecordedTrainer, output=Path(output, "fixed"), rows=rows, save_strategy="no")
        trainer.train()
        trainer.save_model()
    if strategy == "one":
        return
    for name, resumed in (("whole", None), ("resumed", str(Path(output, "whole", "checkpoint-1")))):
        trainer = make(HRPOTrainer, output=Path(output, name), save_steps=1)
        trainer.train(resume_from_checkpoint=resumed)
        thinking = {
            n: str(p.dtype) for n, p in trainer.model.named_parameters() if "thinking" in n and p.requires_grad
        }
        found = {
            "sharding": trainer.accelerator.distributed_type,
            "log": trainer.state.log_history,
            "thinking": thinking,
        }
        Path(output, f"{name}-{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
