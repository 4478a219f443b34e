"""The check that a rollout and the training forward give the same log-probabilities.

Shapes: B rows, C completion tokens.
"""

import torch

from .idle_thoughts import loss_mask
from .thinking_metrics import parity_gap


class ParityCheckMixin:
    """For [`HRPOTrainer`]: due every `parity_check_steps` optimizer steps, on a batch that has `rollout_logps`."""

    _last_parity_step = None

    def _parity_is_due(self):
        every = self.args.parity_check_steps
        if not every or not self.model.training:
            return False
        return self._last_parity_step is None or self.state.global_step - self._last_parity_step >= every

    def _check_parity(self, model, inputs):
        with torch.no_grad():
            logps, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].shape[1],
            )
        mean, largest = parity_gap(logps, inputs["rollout_logps"], loss_mask(inputs), self.accelerator)
        self._metrics["train"]["thinking/parity_gap"].append(largest)
        self._metrics["train"]["thinking/parity_gap_mean"].append(mean)
        # Not `model.dtype`: with a head in fp32 that may be the head's
        half = self.accelerator.mixed_precision != "no" or any(
            parameter.dtype in (torch.bfloat16, torch.float16) for parameter in self.model.parameters()
        )
        half = half or (self.use_vllm and self.vllm_generation.dtype != torch.float32)
        # bf16 rounds the logits of a trained model so that .02 to .04 are usual (SmolLM2-135M)
        kind, gap, tolerance = ("mean", mean, 0.1) if half else ("largest", largest, 1e-3)
        tolerance = tolerance if self.args.parity_tolerance is None else self.args.parity_tolerance
        if not gap <= tolerance:
            raise RuntimeError(
                f"Parity check failed at step {self.state.global_step}: the {kind} gap between the log-probabilities "
                f"of the rollout and of the training forward is {gap:.3g}, beyond {tolerance:.3g} "
                f"({self.accelerator.mixed_precision=}, model in {self.model.dtype}). The policy gradient would be "
                "wrong. Something changes the model or its inputs between the two passes (dropout, a forward hook, "
                "another attention kernel); or raise `parity_tolerance` if the gap is rounding, of which "
                "fp32 has almost none."
            )
