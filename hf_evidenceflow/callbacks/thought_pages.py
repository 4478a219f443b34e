"""Pages of what a training's completions are made of, from the states that its rollouts recorded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from ..probe.completion_trace import ThoughtTrace, trace_completion
from ..probe.thoughts_page import write_thoughts_page


class ThoughtPages(TrainerCallback):
    """
    Writes `thoughts/step_<number>.html` in the run's folder: of the first rollout after each log its first
    completions, token by token, by the main process. Nothing is generated: the cost is two passes over each of these
    completions, and 32 short ones for the probability of a row's `answer` over time. [`HRPOTrainer`] adds it for
    `thought_pages`, and calls it with each rollout.

    Args:
        trainer ([`HRPOTrainer`]):
            Whose rollouts are shown.

    Raises:
        `ValueError`: if the model does not think, or its weights are sharded.
    """

    def __init__(self, trainer):
        samples, reason = trainer.args.thought_pages, None
        if trainer.thinking_mode == "none":
            reason = "with `thinking_mode='none'` there are no thoughts to show"
        elif trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            reason = "the main process writes them alone, and does not have the whole of sharded weights"
        if reason:
            raise ValueError(f"`thought_pages={samples}`: {reason}. Set it to 0.")
        self.trainer, self.samples, self.due = trainer, samples, True

    def on_log(self, args, state, control, **kwargs):
        self.due = True

    def write(self, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Any]) -> Path | None:
        """
        Write the page of a rollout, if one is due.

        Args:
            inputs (`Sequence[Mapping]`): the rows, one for each completion.
            output (`Mapping`): the batch that GRPOTrainer makes of them, with `thinking_states` and `thinking_mask`.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        if not (self.due and trainer.model.training and trainer.accelerator.is_main_process):
            return None
        rows = output["completion_mask"].any(1).nonzero().flatten().tolist()  # a truncated one may be masked whole
        rows = rows[:: math.ceil(len(rows) / self.samples) or 1]
        self.due = False
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.eval()
        try:
            traces = [self._trace(model, inputs[row].get("answer"), output, row) for row in rows]
        finally:
            model.train()
        path = Path(trainer.args.output_dir) / "thoughts" / f"step_{step:06d}.html"
        headline = f"Mode {trainer.thinking_mode}, sampled at temperature {trainer.temperature:g}."
        return write_thoughts_page(traces, path, f"Thoughts at step {step}", headline)

    def _trace(self, model, answer, output, row: int) -> ThoughtTrace:
        kept, tokenizer = output["completion_mask"][row].bool(), self.trainer._tokenizer
        prompt = output["prompt_ids"][row][output["prompt_mask"][row].bool()].tolist()
        return trace_completion(
            model,
            tokenizer,
            tokenizer.decode(prompt),
            prompt,
            output["completion_ids"][row][kept].tolist(),
            output["thinking_states"][row][kept],
            output["thinking_mask"][row][kept],
            k=3,
            answer=None if answer in (None, "") else str(answer),
            answer_points=32,
        )
