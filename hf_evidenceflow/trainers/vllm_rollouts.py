"""Rollouts of [`HRPOTrainer`] on vLLM: its side of `integrations.vllm.rollouts`, which needs vLLM to be imported."""

import importlib.util
from contextlib import nullcontext

import torch
from accelerate.utils import is_peft_model
from torch.nn.utils.rnn import pad_sequence

from .idle_thoughts import idle_thoughts


def thinking_generation(args, thinking_mode: str):
    """
    Inside, TRL's trainer makes an engine of vLLM that thinks, where it makes one; in mode `none` too. A server is
    TRL's own in mode `none`.
    """
    if not args.use_vllm or (args.vllm_mode == "server" and thinking_mode == "none"):
        return nullcontext()
    if importlib.util.find_spec("vllm") is None:
        raise ImportError("`use_vllm=True` needs vLLM. Run `pip install 'hf-evidenceflow[vllm]'`.")
    from ..integrations.vllm.rollouts import thinking_generation

    return thinking_generation(args)


def cuts_distribution(args) -> bool:
    """Whether vLLM's log-probabilities are not those of `temperature` alone, which the loss reads."""
    entries = {"top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p, **(args.generation_kwargs or {})}
    entries.setdefault("repetition_penalty", args.repetition_penalty)
    neutral = {"top_p": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "repetition_penalty": (None, 1)}
    others = set(entries) - set(neutral) - {"seed"}
    return bool(others) or any(entries[name] not in values for name, values in neutral.items())


def vllm_rollout(trainer, completion_ids: list[list[int]], logps: list[list[float]], check: bool):
    """
    What the engine recorded, as `collect_thinking` has it (with log-probabilities for a parity check only), and the
    log-probabilities of tokens for TRL, which compares them with those of the model: 0 for idle thoughts.
    """
    model = None  # sharded gates cannot be looked at
    if not (trainer.is_fsdp_enabled or trainer.accelerator.state.deepspeed_plugin):
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.get_base_model() if is_peft_model(model) else model
    rollout = trainer.vllm_generation.rollout(model, completion_ids, logps if check else None)
    if not trainer._trains_thoughts:
        ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in completion_ids], batch_first=True)
        idle = idle_thoughts(rollout.mask.cpu(), ids, trainer.eos_token_ids)
        logps = [[0.0 if idle[i, j] else value for j, value in enumerate(row)] for i, row in enumerate(logps)]
    return [rollout], logps
