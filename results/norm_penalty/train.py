"""
One run of the study of the norm penalty: `pretrain_clm.py` with what only this study needs.

```bash
python results/norm_penalty/train.py --config recipes/configs/pretrain_clm/loss_p.yaml --model_type llama \
    --config_overrides '{"hidden_size": 64, "num_hidden_layers": 6, "max_position_embeddings": 64}' \
    --train_file wt2_valid.txt --validation_file wt2_test.txt --evidence_objective common --output_dir outputs/common
```

About a minute of one CPU core. Outputs: as of `pretrain_clm.py`, and `measures.jsonl`, see [`StepMeasures`].
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_evidenceflow.losses import register_objective
from hf_evidenceflow.losses.controls import zero
from hf_evidenceflow.models.decoder import decoder_parts, record_layer_states
from hf_evidenceflow.models.from_scratch import parse_overrides
from hf_evidenceflow.probe.measures import effective_rank
from hf_evidenceflow.recipes import pretrain_clm
from hf_evidenceflow.run_folder.exit_codes import run_recipe


MEASURES_NAME = "measures.jsonl"
MEASURED_STEPS = (1, 5, 20, 50, 125, 250, 375, 490)
PROBE_ROWS = 16


@register_objective("common", target=None)
def common(batch, layer):
    """The part of `zero` in the states' mean over the tokens: `zero` = `common` + `spread`."""
    return zero(batch.states_at(layer).mean(0, keepdim=True))


@register_objective("spread", target=None)
def spread(batch, layer):
    """The part of `zero` in the deviations from that mean."""
    states = batch.states_at(layer)
    return zero(states - states.mean(0))


class SpanPenalty:
    """`zero` as long as it is on."""

    on = True

    def __call__(self, batch, layer):
        return zero(batch.states_at(layer)) * float(self.on)


SPAN = register_objective("zero_in_span", target=None)(SpanPenalty())


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""

    def __init__(self, groups, lr, betas, eps, layer_parameters):
        matrices, others = [], []
        for group in groups:
            parts = [[], []]
            for parameter in group["params"]:
                parts[parameter.dim() == 2 and id(parameter) in layer_parameters].append(parameter)
            others.append(group | {"params": parts[0]})
            matrices.append(group | {"params": parts[1]})
        matrices = [group for group in matrices if group["params"]]
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([group for group in others if group["params"]], lr=lr, betas=betas, eps=eps),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        # The schedule writes into groups that accelerate has replaced by copies
        for group, own in zip(self.param_groups, [group for part in self.parts for group in part.param_groups]):
            own["lr"] = group["lr"]
        for part in self.parts:
            part.step()


@dataclass
class StudyArguments(pretrain_clm.ScriptArguments):
    """
    Differs from the arguments of `pretrain_clm.py` in what the arms of the study change.

    Args:
        initial_factors (`dict`, *optional*):
            Pattern of parameter names -> factor of their initial values.
        penalty_span (`list[float]`, *optional*):
            First and last share of the steps in which `zero_in_span` is on; by default all.
        decay_all (`bool`, *optional*, defaults to `False`):
            Whether weight decay acts on the norms too.
        muon (`bool`, *optional*, defaults to `False`):
            Whether the matrices of the layers are trained with Muon.
    """

    initial_factors: dict | str | None = None
    penalty_span: list[float] | None = None
    decay_all: bool = False
    muon: bool = False


class StudySettings(TrainerCallback):
    """Applies what the study changes at the start of a run and before its steps."""

    def __init__(self, args: StudyArguments):
        self.factors = parse_overrides(args.initial_factors, "initial_factors")
        self.span = args.penalty_span or (0.0, 1.0)
        self.decay_all = args.decay_all

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        for pattern, factor in self.factors.items():
            chosen = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
            if not chosen:
                raise ValueError(f"`initial_factors` has {pattern!r}, which is in no parameter's name.")
            for parameter in chosen:
                parameter.data.mul_(factor)
        if self.decay_all:
            for group in optimizer.param_groups:
                group["weight_decay"] = args.weight_decay

    def on_step_begin(self, args, state, control, **kwargs):
        SPAN.on = self.span[0] <= state.global_step / state.max_steps < self.span[1]


class StepMeasures(TrainerCallback):
    """
    Looks at some optimizer steps from before and after, on the same validation rows.

    A row of `measures.jsonl` per step and layer; layer 0 is the embedding, its parameters are those outside the
    layers: `state_norm` (mean over tokens), `common_share` (of the states' mean square, in their mean over tokens),
    `effective_rank` (of the states), `contribution` (norm of what the layer adds / norm of its output),
    `step_of_function` (distance of the states' directions before and after the step), `step_of_weights` (norm of the
    update / norm of the weights), `weight_norm`, `grad_norm`; and the same in all rows of a step: `logit_scale`
    (deviation of the logits over the vocabulary) and `learning_rate`.
    """

    def __init__(self, rows: torch.Tensor, folder: str):
        self.rows, self.path = rows, Path(folder) / MEASURES_NAME
        self.before = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.path.write_text("")

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 in MEASURED_STEPS:
            groups = layer_groups(model)
            grads = [norm_of([p.grad for p in group if p.grad is not None]) for group in groups]
            weights = [[p.detach().clone() for p in group] for group in groups]
            self.before = grads, weights, self.look(model)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.before is None:
            return
        (grads, weights, (states, logits)), self.before = self.before, None
        after, _ = self.look(model)
        rows = []
        for layer, group in enumerate(layer_groups(model)):
            x, own = states[layer], weights[layer]
            inner = states[layer - 1] if layer else torch.zeros_like(x)
            moved = unit(after[layer]) - unit(x)
            row = {
                "state_norm": x.norm(dim=-1).mean(),
                "common_share": x.mean(0).square().sum() / x.square().sum(-1).mean(),
                "effective_rank": effective_rank(x),
                "contribution": ((x - inner).norm(dim=-1) / x.norm(dim=-1)).mean(),
                "step_of_function": moved.norm(dim=-1).mean(),
                "step_of_weights": norm_of([p.detach() - q for p, q in zip(group, own)]) / norm_of(own),
                "weight_norm": norm_of(own),
                "grad_norm": grads[layer],
                "logit_scale": logits.std(-1).mean(),
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            rows.append({"step": state.global_step + 1, "layer": layer} | {k: float(v) for k, v in row.items()})
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    @torch.no_grad()
    def look(self, model):
        """The states `[N, H]` behind the embedding and each layer, and the logits `[N, V]`."""
        parts, first = decoder_parts(model), []
        handle = parts.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: first.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        training = model.training
        model.eval()
        try:
            with record_layer_states(parts) as states:
                logits = model(self.rows, use_cache=False).logits
        finally:
            handle.remove()
            model.train(training)
        return [state.flatten(0, 1).float() for state in (*first[:1], *states)], logits.flatten(0, 1)


def layer_groups(model):
    """The parameters outside the layers, then those of each layer."""
    layers = [list(layer.parameters()) for layer in decoder_parts(model).layers]
    inside = {id(parameter) for layer in layers for parameter in layer}
    return [[p for p in model.parameters() if id(p) not in inside], *layers]


def norm_of(tensors):
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def unit(states):
    return states / states.norm(dim=-1, keepdim=True)


def prepare(trainer, args: StudyArguments) -> None:
    """The study's changes and measures, put on the trainer."""
    if args.muon:
        inside = {id(p) for layer in layer_groups(trainer.model)[1:] for p in layer}
        betas = (trainer.args.adam_beta1, trainer.args.adam_beta2)
        settings = {"lr": trainer.args.learning_rate, "betas": betas, "eps": trainer.args.adam_epsilon}
        trainer.optimizer_cls_and_kwargs = MuonAndAdamW, settings | {"layer_parameters": inside}
    count = min(PROBE_ROWS, len(trainer.eval_dataset))
    rows = torch.stack([torch.as_tensor(trainer.eval_dataset[i]["input_ids"]) for i in range(count)])
    trainer.add_callback(StudySettings(args))
    trainer.add_callback(StepMeasures(rows, trainer.args.output_dir))


def main(argv: list[str] | None = None):
    return pretrain_clm.main(argv, StudyArguments, prepare=prepare)


if __name__ == "__main__":
    run_recipe(main)
