"""TRL's generation with vLLM, for thinking models: the engine loads a thinking checkpoint and hands out its states.

Shapes: B rows of a process, C completion tokens, H hidden size.
"""

import functools
import os
from contextlib import contextmanager
from typing import Any

import torch
import trl.generation.vllm_generation
import trl.trainer.grpo_trainer
from accelerate.utils import is_peft_model
from torch.nn.utils.rnn import pad_sequence
from trl.generation.vllm_generation import VLLMGeneration

from ...models.thinking.thinking_rollout import UNFUSED, ThinkingRollout
from . import MODELS
from .support import check_vllm
from .worker import take_thinking


@contextmanager
def replaced(module, name: str, value):
    """Inside, a module's name stands for another value: TRL takes neither a class nor arguments of vLLM's engine."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield original
    finally:
        setattr(module, name, original)


def thinking_generation(args):
    """
    Inside, [`~trl.GRPOTrainer`] generates with [`ThinkingVLLMGeneration`], or on a server with
    [`ThinkingServerGeneration`], by the arguments of an `HRPOConfig`.
    """
    if args.vllm_mode == "server":
        from .server_rollouts import ThinkingServerGeneration

        return replaced(trl.trainer.grpo_trainer, "VLLMGeneration", ThinkingServerGeneration)
    folder = os.path.join(args.output_dir, "vllm_init")
    make = functools.partial(ThinkingVLLMGeneration, folder=folder, engine_kwargs=args.vllm_engine_kwargs or {})
    return replaced(trl.trainer.grpo_trainer, "VLLMGeneration", make)


class TakenThinking:
    """What an engine recorded of the last call, until [`rollout`] gives it away; before TRL's class."""

    taken: list = []  # states (C, H) and mask (C,) of each row
    accelerator: Any  # of TRL's class

    def rollout(self, model, completion_ids: list[list[int]], logps: list[list[float]] | None) -> ThinkingRollout:
        """
        The thinking of the last call, as `generate` of a thinking model records it; gives it away.

        Args:
            model ([`ThinkingCausalLMMixin`], *optional*):
                The trained model, whose gates are looked at; `None`: they are not, and the rollout has those of tokens
                that are not fused.
            completion_ids (`list[list[int]]`), logps (`list[list[float]]`, *optional*): of the rows.
        """
        device = self.accelerator.device
        taken, self.taken = self.taken, []
        states, mask = (pad_sequence(parts, batch_first=True).to(device) for parts in zip(*taken))
        ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in completion_ids], batch_first=True)
        lengths = torch.tensor([[len(row)] for row in completion_ids], device=device)
        fed = mask & (torch.arange(mask.shape[1], device=device) < lengths - 1)
        if logps is not None:
            logps = pad_sequence([torch.tensor(row) for row in logps], batch_first=True).to(device)
        return ThinkingRollout.from_stats(states, mask, gate_stats(model, ids.to(device), states, fed), logps)


class ThinkingVLLMGeneration(TakenThinking, VLLMGeneration):
    """
    Differs from TRL's in the checkpoint that the engine begins with, in further arguments of the engine, and in the
    thinking of completions, which it keeps for [`rollout`].

    The engine gets config and tokenizer from a folder and no weights: a plain checkpoint has no thinking weights, and
    TRL sends all weights before the first rollout.

    Args:
        folder (`str`): where config and tokenizer are written.
        engine_kwargs (`dict`): arguments of `vllm.LLM`, in addition to TRL's.
        kwargs: TRL's arguments.

    Raises:
        `ValueError`: if vLLM has no thinking class for the model.
    """

    def __init__(self, model, accelerator, processing_class, *, folder: str, engine_kwargs: dict, **kwargs):
        check_vllm()
        base = model.get_base_model() if is_peft_model(model) else model
        name = type(base).__name__
        if name not in MODELS:
            raise ValueError(f"`use_vllm=True`: {name} does not think on vLLM, only {', '.join(MODELS)} do.")
        if accelerator.is_local_main_process:
            base.config.save_pretrained(folder)
            base.generation_config.save_pretrained(folder)
            processing_class.save_pretrained(folder)
        accelerator.wait_for_everyone()
        engine = trl.generation.vllm_generation.LLM

        def make(**given):
            return engine(**{**given, "model": folder, "load_format": "dummy", **engine_kwargs})

        with replaced(trl.generation.vllm_generation, "LLM", make):
            super().__init__(model, accelerator, processing_class, **kwargs)
        if self.thinking_mode != "none":
            self.model_state.records.keeps = True
            self.llm.generate = functools.partial(self._generate_and_take, self.llm.generate)

    @property
    def thinking_mode(self) -> str:
        """Mode that the engine thinks in."""
        return self.llm.llm_engine.model_config.hf_config.thinking_mode

    @property
    def dtype(self) -> torch.dtype:
        """What the engine computes in."""
        return self.llm.llm_engine.model_config.dtype

    @property
    def model_state(self):
        """The [`ThinkingModelState`] of this process's engine."""
        return self.llm.llm_engine.model_executor.driver_worker.model_runner.model_state

    def _generate_and_take(self, generate, prompts, **kwargs):
        outputs = generate(prompts, **kwargs)
        lengths = {output.request_id: len(output.outputs[0].token_ids) for output in outputs}
        taken = take_thinking(self.model_state, lengths)
        self.taken = [taken[output.request_id] for output in outputs]
        return outputs

    def generate(self, prompts, *args, **kwargs):
        """Differs from TRL's in keeping the thinking of this process's rows."""
        result = super().generate(prompts, *args, **kwargs)
        if self.tensor_parallel_size > 1:  # the group's rows were generated together
            first = torch.distributed.get_rank(group=self.tp_group) * len(prompts)
            self.taken = self.taken[first : first + len(prompts)]
        return result


@torch.no_grad()
def gate_stats(model, ids, states, mask) -> torch.Tensor:
    """Means over H of a, r and sqrt(1 - a^2) `(B, C, 3)` where states `(B, C, H)` are fused, from a model's gates."""
    stats = torch.tensor(UNFUSED, device=mask.device).repeat(*mask.shape, 1)
    if model is None or not model.config.thinking_method.fuses:
        return stats
    embeds = model.get_input_embeddings()(ids)
    _, a, r = model.base_model.fuse(embeds, states, mask)
    fused = torch.stack([a.mean(-1), r.mean(-1), (1 - a * a).clamp(min=0).sqrt().mean(-1)], dim=-1)
    return torch.where(mask[..., None], fused.to(stats), stats)
