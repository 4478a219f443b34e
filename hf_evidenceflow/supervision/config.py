"""Settings of layer-wise supervision."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from ..losses import LAYER_WEIGHTS, OBJECTIVES, Objective
from ..losses.layers import rotation_period
from ..losses.objectives import find_objective


TARGETS = ("input_embedding", "output_embedding")
WEIGHT_SCHEDULES = ("constant", "linear", "cosine")
LAYER_SKIP = "layer_skip"

# An eighth of the tokens per layer: what keeps cross-entropy on all layers below 1.6 times the time of plain training
_READOUT_TOKEN_FRACTION = 0.125


@dataclass
class EvidenceFlowConfig:
    """
    What is added to the loss: `weight * sum_i layer_weight_i * objective(F_i)` over the supervised layers.

    Args:
        objective (`str` or `Callable`, *optional*, defaults to `"mse"`):
            `"mse"` (the published Loss_p), `"normalized_mse"`, `"cosine"`, `"cross_entropy"` (shared final norm and
            head), `"lens_kl"` (to the final layer's distribution), `"deep_supervision"` (cross-entropy through a norm
            and head of its own per layer), `"nitp"`, or a control: `"zero"`, `"shuffled"`. Or a name of yours, see
            [`~hf_evidenceflow.losses.register_objective`], or a function `objective(batch, layer)`.
        weight (`float`, *optional*, defaults to `1.0`):
            Factor of the sum over layers. At 0 nothing is attached.
        weight_warmup_steps (`float`, *optional*, defaults to `0`):
            Optimizer steps in which the weight rises linearly from 0; below 1: a share of all steps.
        weight_schedule (`str`, *optional*, defaults to `"constant"`):
            After the warm-up: `"constant"`, or `"linear"` or `"cosine"` decay to 0 at the last step.
        layers (`str` or `list[int]`, *optional*, defaults to `"all"`):
            `"all"`, `"every:k"`, `"last:k"` or ids from 0. The objectives that read layers out leave the last one to
            the model's own loss, unless a list names it.
        layer_weights (`str`, *optional*, defaults to `"uniform"`):
            `"uniform"`, `"linear"` or `"drift"`, see [`~hf_evidenceflow.losses.layer_weights`]. `"layer_skip"`, with
            an objective that reads layers out: a weighted mean of all layers' losses, the model's own for the last,
            see [`~hf_evidenceflow.losses.layers.layer_skip_weights`]; `weight` is its scale, from 0 to 1.
        layer_curriculum (`str`, *optional*):
            `"rotational:R"` or `"gradual"`: the layers that get a term in a step, see
            [`~hf_evidenceflow.losses.layers.enabled_layers`]. If `None`, all in each.
        target (`str`, *optional*):
            `"input_embedding"` or `"output_embedding"` row of the right next token. If `None`, the output row for
            `cosine`, else the input row.
        detach_target (`bool`, *optional*):
            Whether the target gets no gradient. If `None`, `False` for `mse`, `normalized_mse` and `shuffled` (as
            published); `cosine` and `nitp` always detach it.
        target_mask (`bool`, *optional*, defaults to `False`):
            Whether each supervised layer is pulled on its own block of the features only.
        apply_final_norm (`bool`, *optional*):
            Whether states pass the model's final norm first. If `None`, only where a readout needs it.
        token_fraction (`float`, *optional*):
            Share of the valid tokens that a layer is supervised on, in (0, 1], drawn anew for each layer and
            micro-batch. The expectation is that of all tokens. If `None`, 0.125 for `cross_entropy`, `lens_kl` and
            `deep_supervision`, else 1.
        shallow_layer (`int`, *optional*, defaults to `0`):
            For `nitp`: the layer whose next state is predicted.
        chunk_size (`int`, *optional*, defaults to `256`):
            Tokens whose logits exist at a time in the objectives that read layers out.
        log_every (`int`, *optional*, defaults to `1`):
            Each how many optimizer steps the terms are recorded; 0: never.
        layer_modules (`str`, *optional*):
            Name of the `ModuleList` of decoder layers, such as `"model.layers"`. If `None`, it is looked for.
        seed (`int`, *optional*, defaults to `0`):
            Of the draws of tokens and of the objectives' own parameters. The global generators are never touched.

    Raises:
        ValueError: if a value is out of its range, or an option does not go with the objective.
    """

    objective: str | Callable = "mse"
    weight: float = 1.0
    weight_warmup_steps: float = 0
    weight_schedule: str = "constant"
    layers: str | list[int] = "all"
    layer_weights: str = "uniform"
    layer_curriculum: str | None = None
    target: str | None = None
    detach_target: bool | None = None
    target_mask: bool = False
    apply_final_norm: bool | None = None
    token_fraction: float | None = None
    shallow_layer: int = 0
    chunk_size: int = 256
    log_every: int = 1
    layer_modules: str | None = None
    seed: int = 0

    def __post_init__(self):
        if not callable(self.objective):
            self._check_choice("objective", tuple(OBJECTIVES))
        self._check_choice("weight_schedule", WEIGHT_SCHEDULES)
        self._check_choice("layer_weights", (*LAYER_WEIGHTS, LAYER_SKIP))
        self._check_range("weight", self.weight >= 0 and math.isfinite(self.weight), "a finite number from 0")
        self._check_range("weight_warmup_steps", self.weight_warmup_steps >= 0, "at least 0")
        self._check_range("chunk_size", self.chunk_size >= 1, "at least 1")
        self._check_range("log_every", self.log_every >= 0, "at least 0")
        if self.token_fraction is not None:
            self._check_range("token_fraction", 0 < self.token_fraction <= 1, "in (0, 1]")
        if self.layer_weights == LAYER_SKIP:
            self._check_goes_with("layer_weights", [name for name, traits in OBJECTIVES.items() if traits.reads_out])
        if self.layer_curriculum not in (None, "gradual"):
            rotation_period(self.layer_curriculum)
        if self.target is not None:
            self._check_choice("target", TARGETS)
            self._check_goes_with("target", [name for name, traits in OBJECTIVES.items() if traits.target])
        if self.target_mask:
            self._check_goes_with("target_mask", [name for name, traits in OBJECTIVES.items() if traits.masked])
        if self.detach_target is False and not self.traits.live_target:
            raise ValueError(
                f"`detach_target=False` with `objective={self.objective!r}`: with a live target the distance also "
                "falls when all rows turn the same way. Leave it out."
            )
        if self.apply_final_norm and self.objective == "deep_supervision":
            raise ValueError("`apply_final_norm=True` with 'deep_supervision': each layer has a norm of its own.")
        if self.apply_final_norm is False and self.objective in ("cross_entropy", "lens_kl"):
            raise ValueError(f"`apply_final_norm=False` with {self.objective!r}: the head reads normalized states.")
        for name, default in (("layers", "all"), ("layer_curriculum", None)):
            if self.objective == "nitp" and getattr(self, name) != default:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` with 'nitp', which supervises the last layer only."
                )

    def _check_choice(self, name, choices):
        value = getattr(self, name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.{hint}")

    def _check_range(self, name, ok, words):
        if not ok:
            raise ValueError(f"`{name}` must be {words}, got {getattr(self, name)!r}.")

    def _check_goes_with(self, name, objectives):
        if not callable(self.objective) and self.objective not in objectives:
            raise ValueError(
                f"`{name}={getattr(self, name)!r}` goes with {', '.join(map(repr, objectives))} only, got the "
                f"objective {self.objective!r}."
            )

    @property
    def traits(self) -> Objective:
        """The objective and what is known of it."""
        return find_objective(self.objective)

    @property
    def resolved_target(self) -> str | None:
        """The target, with its default for the objective."""
        return self.target or self.traits.target

    @property
    def resolved_token_fraction(self) -> float:
        """The share of tokens, with its default for the objective."""
        if self.token_fraction is not None:
            return self.token_fraction
        return _READOUT_TOKEN_FRACTION if self.traits.reads_out else 1.0

    def weight_at(self, step: int, total_steps: int | None) -> float:
        """
        The weight in the optimizer step that follows `step` others, of `total_steps` in the run.

        Raises:
            ValueError: if `total_steps` is `None` and the schedule depends on it.
        """
        needs_total = self.weight_schedule != "constant" or 0 < self.weight_warmup_steps < 1
        needs_total |= self.layer_curriculum == "gradual"
        if needs_total and total_steps is None:
            raise ValueError(
                f"`weight_schedule={self.weight_schedule!r}`, `weight_warmup_steps={self.weight_warmup_steps}` and "
                f"`layer_curriculum={self.layer_curriculum!r}` depend on the length of the run: pass `total_steps`."
            )
        total = total_steps or 0
        warmup = self.weight_warmup_steps
        if 0 < warmup < 1:
            warmup = math.ceil(warmup * total)
        if step < warmup:
            return self.weight * (step + 1) / (warmup + 1)
        if self.weight_schedule == "constant":
            return self.weight
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        left = 1 - progress if self.weight_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return self.weight * left


def resolve_config(config: EvidenceFlowConfig | None, overrides: dict) -> EvidenceFlowConfig:
    """
    The config, or the defaults, with some fields replaced.

    Raises:
        TypeError: if a name is no field, with the nearest one that is.
    """
    names = [field.name for field in fields(EvidenceFlowConfig)]
    for name in overrides:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"They are: {', '.join(names)}."
            raise TypeError(f"`{name}` is no field of EvidenceFlowConfig. {hint}")
    return replace(config or EvidenceFlowConfig(), **overrides)
