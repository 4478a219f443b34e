"""Rollouts that think: what each call of `generate` recorded is kept for the update, over the turns of a conversation.

Shapes: B rows, C completion tokens, H hidden size.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from ..models.thinking.thinking_rollout import ThinkingRollout, collect_thinking
from ..rollouts.progress import StockLoopProgress, shows_progress
from .conversations import Conversations, prompt_thinking
from .drawn_densities import drawn_fields
from .thinking_metrics import latent_weights, rollout_metrics, tokens_per_second
from .vllm_rollouts import cuts_distribution, vllm_rollout


@dataclass
class RolloutBatch:
    """
    A batch while it is rolled out.

    Args:
        check (`bool`): whether log-probabilities are recorded, for a parity check.
        conversations ([`Conversations`], *optional*): its rows, where there may be several turns.
        rollout ([`ThinkingRollout`], *optional*): of the last turn.
        tokens (`int`), seconds (`float`): what was generated, and in what time.
    """

    check: bool
    conversations: Conversations = field(default_factory=Conversations)
    rollout: ThinkingRollout | None = None
    tokens: int = 0
    seconds: float = 0.0


class ThinkingRolloutsMixin:
    """
    For [`HRPOTrainer`]: leaves `_thinking`, `_drawn` and `_expected_logps` of the batch; before a GRPO trainer.
    """

    _rolled_out: RolloutBatch | None = None

    def _new_batch(self):
        return RolloutBatch(self._parity_is_due() and not (self.use_vllm and cuts_distribution(self.args)))

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        """
        Differs from GRPOTrainer in the decoding loop, in recording the thinking states of the turn, and in those of
        earlier turns, with which their tokens are read.
        """
        batch = self._new_batch() if self._rolled_out is None else self._rolled_out
        thinks, rows, thoughts = self.thinking_mode != "none", [], {}
        if thinks and self.tools:
            rows = batch.conversations.of(prompt_ids)
            thoughts = prompt_thinking(rows, prompt_ids)  # TRL hands tensors on to `generate`
        start = time.perf_counter()
        temperature = self.temperature if batch.check else None
        watcher = StockLoopProgress(self.eos_token_ids) if shows_progress(self.args) else None
        with (
            nullcontext() if watcher is None else watcher,
            collect_thinking(self._tokenizer, temperature, self.rollout_engine, watcher) as rollouts,
        ):
            completion_ids, logps = super()._generate_single_turn(
                prompt_ids, images, {**multimodal_fields, **thoughts}, num_generations, **kwargs
            )
        seconds = time.perf_counter() - start
        batch.tokens += sum(map(len, completion_ids))
        batch.seconds += seconds
        if self.use_vllm and thinks:
            rollouts, logps = vllm_rollout(self, completion_ids, logps, batch.check)
        if not rollouts and thinks:
            raise RuntimeError(
                f"The rollout recorded no thinking states (`thinking_mode={self.thinking_mode!r}`): something "
                "generates around the model's own `generate`, and training would go on without thinking. Take it off "
                "the model, or set the model's `thinking_mode` to 'none'."
            )
        batch.rollout = rollouts[0] if rollouts else None
        for index, row in enumerate(rows):
            row.add(prompt_ids[index], completion_ids[index], rollouts[0], index)
        return completion_ids, logps

    def _generate(self, prompts):
        """Differs from GRPOTrainer in keeping the thinking of the completions, and in what is logged of it."""
        batch = self._rolled_out = self._new_batch()
        try:
            result = super()._generate(prompts)
        finally:
            self._rolled_out = None
        if batch.rollout is not None:
            if self.tools:
                batch.rollout = batch.conversations.joined(*result[:2])
            self._keep_rollout(batch, result[1])
        if self.rollout_func is None:
            # Here, since processes may differ in their number of turns
            speed = tokens_per_second(batch.tokens, batch.seconds, self.accelerator)
            self._metrics["train" if self.model.training else "eval"]["rollout/tokens_per_second"].append(speed)
        return result

    def _keep_rollout(self, batch, completion_ids):
        rollout = batch.rollout
        if batch.check:
            self._last_parity_step = self.state.global_step
        self._expected_logps = rollout.logps
        self._thinking = rollout.states, rollout.mask
        self._drawn = drawn_fields(rollout)
        self._log_completion_extra("latent_weight", latent_weights(rollout, completion_ids))
        metrics = rollout_metrics(rollout, batch.tokens, self.accelerator)
        if self._projection_metrics is not None:
            base = self.accelerator.unwrap_model(self.model)
            metrics |= self._projection_metrics.measure(base, rollout, self.temperature, self.accelerator)
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][f"thinking/{name}"].append(value)
