"""Layer-wise supervision of any causal LM: a term from the states after the decoder layers is added to its loss.

Hooks on the outermost module keep the labels and add the term to the output's `loss`, hooks on the decoder layers keep
their outputs; all act only in training mode with gradients. The outermost module, because PEFT calls the inner one's
`forward` directly; decoder layers and not their sub-modules, because gradient checkpointing runs the latter twice.

Source: the EvidenceFlow loss, `Loss_p = sum_i mean((F_i - T)^2)`, and its neighbors in `hf_evidenceflow.losses`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..losses import next_token_targets
from ..models.decoder import decoder_parts, layer_output
from .config import EvidenceFlowConfig, resolve_config
from .layer_terms import layer_terms, make_own_modules, term_weights
from .term_log import TermLog


@dataclass
class _Batch:
    """What one forward pass of the outermost module has shown so far."""

    inputs: dict
    states: list[torch.Tensor] = field(default_factory=list)
    autocast_dtype: torch.dtype | None = None


class EvidenceFlow:
    """
    The supervision of one model. Made by [`evidence_flow`] or by [`EvidenceFlowCallback`].

    Args:
        model (`nn.Module`):
            A causal LM; PEFT, DDP and compiled wrappers are looked through.
        config ([`EvidenceFlowConfig`]):
            Settings.
        total_steps (`int`, *optional*):
            Optimizer steps of the run, for schedules that depend on it.
        once (`bool`, *optional*, defaults to `False`):
            Whether the hooks come off after each forward pass, until [`attach`] is called again.

    Attributes:
        own_modules (`nn.ModuleDict`):
            Modules of the objective's own (`nitp`, `deep_supervision`), which are no part of the model: give their
            [`parameters`] to the optimizer, and save their `state_dict()` where the run has to be resumed. In a
            distributed run their gradients are averaged as they come.
        log ([`TermLog`]):
            Sums of the terms since the last `pop`.

    Raises:
        ValueError: if the model's layers cannot be found, or the settings do not fit it.
    """

    def __init__(
        self, model: nn.Module, config: EvidenceFlowConfig, total_steps: int | None = None, once: bool = False
    ):
        self.config = config
        self.total_steps = total_steps
        self.step = 0
        self.log = TermLog()
        # `keep_torch_compile` is for the wrapper alone: hooks have to be on the module inside it
        self._outermost = extract_model_from_parallel(model, keep_torch_compile=False)
        self.parts = decoder_parts(self._outermost, config.layer_modules)
        self.parts.check_width()
        self._once = once
        self._batch: _Batch | None = None
        self._micro_batch = 0
        self._ran_outside = False
        self._handles: list[RemovableHandle] = []
        self._readout_checked = not config.traits.reads_out
        num_layers = self.parts.model.config.get_text_config().num_hidden_layers
        initial = torch.Generator().manual_seed(config.seed)  # the same on all ranks
        self.own_modules = make_own_modules(config, self.parts, num_layers, initial)
        term_weights(config, num_layers, 0, total_steps)
        for parameter in self.own_modules.parameters():
            parameter.register_post_accumulate_grad_hook(_average_over_ranks)

    # Hooks

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self._handles)

    def attach(self) -> "EvidenceFlow":
        """Put the hooks on the model; at a weight of 0 there are none. Calling it again changes nothing."""
        if self._handles or self.weight == 0:
            return self
        self._handles = [self._outermost.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        self._handles += [layer.register_forward_hook(self._after_layer) for layer in self.parts.layers]
        self._handles.append(self._outermost.register_forward_hook(self._after_forward, always_call=True))
        return self

    def remove(self) -> None:
        """Take the hooks off the model. Calling it again changes nothing."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        self._batch = None

    def _before_forward(self, module, args, kwargs):
        if self._once and self._batch is not None:
            self.remove()  # Ctrl-C in the middle of the last forward pass, which no hook hears of
            return
        self._batch = _Batch(kwargs) if module.training and torch.is_grad_enabled() else None

    def _after_layer(self, layer, args, output):
        if self._batch is not None:
            device = layer_output(output).device.type
            if torch.is_autocast_enabled(device):
                self._batch.autocast_dtype = torch.get_autocast_dtype(device)
            self._batch.states.append(layer_output(output))
        elif layer.training and torch.is_grad_enabled():
            # Or a checkpointed layer runs again in the backward pass: then there was a term before
            self._ran_outside = True

    @torch.compiler.disable
    def _after_forward(self, module, args, output):
        batch, self._batch = self._batch, None
        if self._once:
            self.remove()
        # `always_call`: after an exception there is no output
        if batch is None or output is None:
            return None
        if batch.inputs.get("fused_lm_head"):
            return self._supervise_log_probs(batch, output)
        loss = output.get("loss") if isinstance(output, dict) else output[0]
        if batch.inputs.get("labels") is None or loss is None or loss.dim() > 0:
            raise ValueError(
                f"The model got {'no `labels`' if batch.inputs.get('labels') is None else 'labels but gave no loss'}, "
                f"so there is no loss to supervise, {_NO_LOSS_REASON}"
            )
        normalizer = batch.inputs.get("num_items_in_batch")
        own, term = self._weighted_term(batch, output, loss.detach(), normalizer)
        loss = own * loss + term
        if not isinstance(output, dict):
            return (loss, *output[1:])
        output["loss"] = loss
        return output

    def _supervise_log_probs(self, batch, output):
        # SFTTrainer sums TRL's fused log-probabilities and divides them itself: what is spread over them is divided
        # with them
        mask, log_probs = output["label_mask"], output["log_probs"]
        own, term = self._weighted_term(batch, output, -log_probs.detach().sum(), 1.0)
        output["log_probs"] = own * log_probs - mask * (term / mask.sum().clamp(min=1))
        return output

    # The term

    @property
    def weight(self) -> float:
        """In the current optimizer step."""
        return self.config.weight_at(self.step, self.total_steps)

    def next_step(self) -> None:
        """Tell that an optimizer step is done, after [`check_step`]: the schedule and the draws of tokens go on."""
        self.check_step()
        self.start_step(self.step + 1)

    def start_step(self, step: int) -> None:
        """Tell the number of optimizer steps done before."""
        self.step = step
        self._micro_batch = 0
        self._ran_outside = False

    def check_step(self) -> None:
        """
        Check, before the optimizer's step, that the loss got its term.

        Raises:
            RuntimeError: if no term was added in this step, though its weight is above 0.
        """
        if self.weight > 0 and self._micro_batch == 0:
            raise RuntimeError(
                "No layer-wise term came into the loss of this step: the model's own forward pass did not run in "
                f"training mode with gradients, {_NO_LOSS_REASON}"
            )

    def _generator(self):
        # By step and micro-batch, so that a resumed run draws what the uninterrupted one does
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        seed = hash((self.config.seed, self.step, self._micro_batch, rank)) % 2**63
        return torch.Generator().manual_seed(seed)

    def _weighted_term(self, batch, output, model_loss, normalizer):
        inputs, states = batch.inputs, batch.states
        expected = self.parts.model.config.get_text_config().num_hidden_layers
        if self.own_modules and len(states) != expected:
            raise ValueError(
                f"The model has run {len(states)} layers where its config counts {expected}: "
                f"{self.config.objective!r} needs to know them beforehand. Choose an objective without parameters of "
                "its own."
            )
        labels = inputs["labels"]
        extra = states[0].shape[1] - labels.shape[1]
        if extra:  # virtual tokens of prompt learning come first
            states = [state[:, extra:] for state in states]
        logits = output.get("logits") if isinstance(output, dict) else None
        if not self._readout_checked and logits is not None:
            with self._autocast(batch):
                self.parts.check_readout(states[-1], logits)
            self._readout_checked = True
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        targets = next_token_targets(
            labels,
            mask if mask is not None and mask.dim() == 2 else None,
            positions if positions is not None and positions.dim() == 2 else None,
        )
        weights, own = term_weights(self.config, len(states), self.step, self.total_steps)
        with self._autocast(batch):
            terms = layer_terms(
                states, targets, self.parts, self.config, self._generator(), self.own_modules, weights, normalizer
            )
        self._micro_batch += 1
        if self.config.log_every and self.step % self.config.log_every == 0:
            self.log.add(terms, model_loss, len(targets.labels), normalizer, self.weight)
        return own, (self.weight * terms.total).to(device=model_loss.device, dtype=model_loss.dtype)

    def _autocast(self, batch):
        # The hook of the outermost module runs outside the autocast that accelerate wraps around `forward`
        device = batch.states[0].device.type
        return torch.autocast(device, batch.autocast_dtype, enabled=batch.autocast_dtype is not None)

    # Parameters of the objective's own

    def parameters(self) -> list[nn.Parameter]:
        """Those of [`own_modules`]; mostly none."""
        return list(self.own_modules.parameters())


@contextmanager
def evidence_flow(
    model: nn.Module, config: EvidenceFlowConfig | None = None, *, total_steps: int | None = None, **overrides
) -> Iterator[EvidenceFlow]:
    """
    Supervise a model's layers inside a `with` block, for training loops without a Trainer.

    Arguments as in [`EvidenceFlow`]; the model before or after `accelerator.prepare`, `overrides` are fields of the
    config.

    Yields:
        [`EvidenceFlow`]: Its `log.pop()` gives the terms. Call `next_step()` after each optimizer step where the
        weight has a schedule. Objectives with parameters of their own: add `parameters()` to the optimizer.

    Raises:
        RuntimeError: at the end of a step or of the block, if the layers ran but no term came into a loss.

    Example:

    ```python
    >>> with evidence_flow(model, objective="cosine", weight=0.5) as flow:
    ...     for batch in dataloader:
    ...         model(**batch).loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    ...         flow.next_step()
    ```
    """
    flow = EvidenceFlow(model, resolve_config(config, overrides), total_steps)
    try:
        yield flow.attach()
        if flow._ran_outside:
            flow.check_step()
    finally:
        flow.remove()


_NO_LOSS_REASON = (
    "as where the trainer computes its own loss (GRPO, HRPO and DPO from log-probabilities, `compute_loss_func` or "
    "label smoothing from logits). Train with `labels` in the batch and the model's own loss (Trainer, SFTTrainer), "
    "or leave the layer-wise supervision out."
)


def _average_over_ranks(parameter):
    # The part from earlier micro-batches is the same on all ranks, so averaging it again changes nothing
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
