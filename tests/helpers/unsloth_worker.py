"""Real Unsloth: one adapter under the patch, two steps of HRPO with it; writes what happened as JSON."""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from quiet_training import QUIET
from transformers import AutoTokenizer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model, register_models  # before unsloth


def unsloth_model(folder, backend):
    from unsloth import FastLanguageModel

    if backend == "cpu":
        return FastLanguageModel.from_pretrained(folder, load_in_4bit=False)[0]
    # Without a GPU the loader patches transformers, then asks for the card and stops: the rest is done here
    with contextlib.suppress(AssertionError):
        return FastLanguageModel.from_pretrained(folder, load_in_4bit=False, use_gradient_checkpointing=False)[0]
    from unsloth.models.vision import FastBaseModel

    model = load_thinking_model(folder, dtype=torch.bfloat16)
    model.max_seq_length = 64
    model._saved_temp_tokenizer = AutoTokenizer.from_pretrained(folder)
    return FastBaseModel.post_patch_model(model, use_gradient_checkpointing=False)


def thinking_parameters(model):
    return {name: p for name, p in model.named_parameters() if "thinking_" in name and "modules_to_save" in name}


def main(folder, backend, output):
    register_models()
    model = unsloth_model(folder, backend)
    from unsloth import FastLanguageModel

    from hf_evidenceflow.patches import patch_unsloth

    originals = dict(vars(FastLanguageModel))
    with patch_unsloth():
        model = FastLanguageModel.get_peft_model(model, r=3, use_gradient_checkpointing=False)
    trained = {name: p.requires_grad for name, p in thinking_parameters(model).items()}
    before = {name: p.detach().clone() for name, p in thinking_parameters(model).items()}
    args = HRPOConfig(
        os.path.join(output, "run"),
        **QUIET | {"use_cpu": False},
        save_strategy="no",
        per_device_train_batch_size=4,
        max_steps=2,
        max_completion_length=7,
        temperature=1.0,
        parity_check_steps=1,
        activation_checkpointing=False,
        learning_rate=1e-2,
        beta=0.0,
        warmup_steps=0,
        logging_steps=1,
    )
    trainer = HRPOTrainer(
        model,
        lambda completions, **kwargs: [float(len(set(text))) for text in completions],
        args,
        Dataset.from_dict({"prompt": ["Tom has 3 apples.", "7+2="] * 4}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    after = thinking_parameters(trainer.model)
    result = {
        "restored": dict(vars(FastLanguageModel)) == originals,
        "trained": trained,
        "dtypes": sorted({str(p.dtype) for p in after.values()}),
        "moved": {name: not torch.equal(after[name], value) for name, value in before.items()},
        "parity": [row["thinking/parity_gap_mean"] for row in trainer.state.log_history if "loss" in row],
        "thinking": [row["thinking/token_share"] for row in trainer.state.log_history if "loss" in row],
    }
    Path(output, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
