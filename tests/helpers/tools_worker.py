"""Two steps of HRPOTrainer with tools on ranks that call them unequally often; each rank saves its weights and log."""

import json
import os
import sys
from pathlib import Path

from quiet_training import STEP_BY_STEP
from safetensors.torch import save_file
from tool_talk import look_up, questions, talk_reward, talking, turn_ends
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model


def main(checkpoint, output):
    rank, tokenizer = int(os.environ["RANK"]), AutoTokenizer.from_pretrained(checkpoint)
    args = HRPOConfig(
        output,
        **STEP_BY_STEP,
        ddp_timeout=60,
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=32,
        max_tool_calling_iterations=2 * rank,
        generation_kwargs={"eos_token_id": turn_ends(tokenizer)},
        parity_check_steps=1,
        parity_tolerance=1e-4,
        save_strategy="no",
        learning_rate=1e-3,
        beta=0.0,
        seed=4,
    )
    trainer = HRPOTrainer(
        load_thinking_model(checkpoint, thinking_residual_r_min=0.5, thinking_residual_r_max=0.6),
        talk_reward,
        args=args,
        train_dataset=questions(),
        processing_class=talking(tokenizer),
        tools=[look_up],
    )
    calls, generate = [], trainer._generate_single_turn

    def counted(*args, **kwargs):
        calls.append(1)
        return generate(*args, **kwargs)

    trainer._generate_single_turn = counted
    trainer.train()
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    save_file({name: tensor.clone() for name, tensor in weights.items()}, Path(output) / f"weights-{rank}.safetensors")
    report = {"turns": len(calls), "log": trainer.state.log_history}
    (Path(output) / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
