"""A model of a few dozen numbers with the thinking modules' parameter names, and real Trainers for it on CPU."""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.trainers.parameter_groups import apply_parameter_groups


class GatedConfig(PreTrainedConfig):
    model_type = "tiny_gated"

    @property
    def thinking_method(self):
        return THINKING_METHODS[self.thinking_mode]


class _Lambda(nn.Module):
    def __init__(self):
        super().__init__()
        self.Lambda = nn.Parameter(torch.linspace(3.0, 5.0, 5))


class _GatedBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.thinking_residual_gate_r = nn.Linear(5, 5)
        self.thinking_residual_gate_i = nn.Linear(5, 5)
        self.thinking_residual_Lambda = _Lambda()
        self.thinking_projection = nn.Linear(5, 5, bias=False)
        self.connected = True
        self.projection_scale = 1.0

    def forward(self, x):
        e = self.embed(x)
        state = self.thinking_projection(e) * self.projection_scale
        if not self.connected:
            state = state.detach()
        r, i = self.thinking_residual_gate_r(e).sigmoid(), self.thinking_residual_gate_i(e).sigmoid()
        decay = torch.exp(-self.thinking_residual_Lambda.Lambda.float() * r)
        return decay * e + (1 - decay) * i * state


class Gated(PreTrainedModel):
    config_class = GatedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = _GatedBase()
        self.head = nn.Linear(5, 2)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x, labels, weight):
        errors = (self.head(self.model(x)) - labels).pow(2).sum(-1)
        return {"loss": (weight * errors).mean()}


class Plain(Gated):
    """The same without any thinking parameter."""

    def __init__(self, config):
        super().__init__(config)
        self.model = nn.Linear(3, 5)


class GroupedTrainer(Trainer):
    """Groups its parameters itself, as HRPOTrainer does."""

    def __init__(self, *args, specs=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.specs = specs

    def create_optimizer(self, model=None):
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            apply_parameter_groups(optimizer, self.model.named_parameters(), self.specs)
        return optimizer


def make_model(model_class=Gated, seed=0, **config):
    torch.manual_seed(seed)
    return model_class(GatedConfig(**config))


def make_data(weights):
    """One sample for each weight; a sample of weight 0 has a gradient of exactly zero."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(3, generator=generator),
            "labels": torch.randn(2, generator=generator),
            "weight": torch.tensor(float(weight)),
        }
        for weight in weights
    ]


def make_trainer(tmp_path, model=None, trainer_class=Trainer, weights=(1,) * 24, callbacks=None, specs=None, **args):
    defaults = {
        "per_device_train_batch_size": 1,
        "max_steps": 7,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    kwargs = {} if specs is None else {"specs": specs}
    return trainer_class(
        model=make_model() if model is None else model,
        args=TrainingArguments(str(tmp_path), **(defaults | args)),
        train_dataset=make_data(weights),
        callbacks=callbacks,
        **kwargs,
    )
