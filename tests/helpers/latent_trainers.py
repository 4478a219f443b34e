"""Short runs of LatentSFTTrainer on rows with unequal numbers of thoughts, one of which has none."""

import torch
from latent_models import FAMILIES
from quiet_training import STEP_BY_STEP
from thinking_models import FIELDS
from tiny_models import TINY

from hf_evidenceflow import LatentSFTConfig, LatentSFTTrainer


# `=` is one token of the tests' tokenizer, `####` is two
MARKER = {"thinking_answer_start": "="}
TARGETS = [
    {"prompt": "Tom", "answer": "c", "thought_targets": [{"a": 0.5, "b": 0.25, "d": 0.25}, {"b": 1.0}]},
    {"prompt": "Ann?", "answer": "b", "thought_targets": [{"c": 1.0}, {"a": 0.5, "b": 0.5}, {"d": 2.0, "e": 6.0}]},
    {"prompt": "7+2", "answer": "9", "thought_targets": []},
    {"prompt": "x", "answer": "12", "thought_targets": [{"e": 0.1, "a": 0.9}]},
]
STEPS = [
    {"prompt": "Tom", "answer": "c", "steps": ["ab", "c"]},
    {"prompt": "Ann?", "answer": "b", "steps": ["d", "e", "fgh"]},
    {"prompt": "7+2", "answer": "9", "steps": []},
    {"prompt": "x", "answer": "12", "steps": ["e"]},
]
OBJECTIVES = {
    "soft_targets": (TARGETS, {"thinking_mode": "soft"}),
    "answer": (STEPS, {"thinking_mode": "coconut", "latent_curriculum": [0, 1, 2], "latent_steps_per_stage": 2}),
    "distill": (STEPS, {"thinking_mode": "codi", "thinking_count": 2}),
}


def make_thinking_model(mode="soft", family="qwen2", seed=0, **fields):
    """In fp32, with gates that are wide open."""
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    fields = {"initializer_range": 0.2, "thinking_mode": mode} | MARKER | FIELDS[mode] | fields
    if mode in ("coconut", "codi", "pause"):
        fields.setdefault("thinking_count", 2)
    return model_class(config_class(**TINY | own, **fields))


def make_latent_trainer(
    folder, tokenizer, objective="soft_targets", rows=None, model=None, trainer_class=LatentSFTTrainer, **settings
):
    """A trainer of six steps on four rows; `settings` are further arguments or replace its own."""
    own_rows, own = OBJECTIVES[objective]
    keys = ("eval_dataset", "peft_config", "callbacks", "optimizers")
    kwargs = {name: settings.pop(name) for name in keys if name in settings}
    defaults = {
        "objective": objective,
        "per_device_train_batch_size": 2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "answer_template": "={answer}",
        "seed": 3,
        **own,
    }
    settings = STEP_BY_STEP | defaults | settings
    if model is None:
        model = make_thinking_model(settings["thinking_mode"])
    return trainer_class(
        model,
        LatentSFTConfig(str(folder), **settings),
        train_dataset=own_rows if rows is None else rows,
        processing_class=tokenizer,
        **kwargs,
    )


def weights_of(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
