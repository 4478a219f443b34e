"""Batched, seeded generation for evaluations, which a later run can take up where an earlier one stopped.

The unit is the batch: its make-up follows from the prompts and the batch size alone, its random numbers from the seed
and its place in the plan. A run that starts at batch `n` thus gives what an uninterrupted one gives from there on.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import is_peft_model

from ..data.token_ids import check_token_ids
from ..models.thinking.thinking_rollout import collect_thinking
from ..rollouts.engine import RolloutEngine
from ..rollouts.generation_settings import own_generation_config
from ..rollouts.progress import StockLoopProgress
from ..tasks.prompts import render_prompt


@dataclass(frozen=True)
class Completion:
    """
    One generated completion.

    `index` is the place of its prompt in those given, `sample` its number among that prompt's, from 0; `prompt` is as
    the model saw it, `text` has no special tokens, while the lengths count the end-of-sequence token. `finished` tells
    whether it ended by itself rather than at `max_new_tokens`, and `seconds` is its share of its batch's time. For a
    thinking model, else `None`: the number of tokens in the thinking phase, and `latent_weight`, the weight
    `sqrt(1 - a^2)` of the thinking state in the inputs of its tokens, mean over all of them, 0 to 1.
    """

    index: int
    sample: int
    prompt: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool
    thinking_tokens: int | None
    latent_weight: float | None
    seconds: float


def render_prompts(
    tokenizer, prompts: Sequence[str | list[dict[str, str]]], chat_template_kwargs: dict | None = None
) -> tuple[list[str], list[list[int]]]:
    """What the model sees of [`generate_completions`]' prompts: texts with the template applied, and token ids."""
    if len(prompts) == 0:
        raise ValueError("There are no prompts to complete. Check `max_samples` and the data set.")
    texts, ids = [], []
    for prompt in prompts:
        text, tokens = render_prompt(prompt, tokenizer, chat_template_kwargs)
        if not tokens:
            raise ValueError(f"Prompt {len(ids)} has no tokens: {text!r}. Remove it from the data.")
        texts.append(text)
        ids.append(tokens)
    return texts, ids


def plan_batches(lengths: Sequence[int], batch_size: int, num_samples: int = 1) -> list[list[tuple[int, int]]]:
    """
    Sort the samples to draw into batches of like lengths, the longest first, so that a lack of memory shows at once.

    `lengths` are those of the prompts, in tokens. Batches hold pairs `(prompt index, sample number)`; the last one may
    have fewer than `batch_size`.
    """
    if batch_size < 1 or num_samples < 1:
        raise ValueError(f"`batch_size` and `num_samples` must be at least 1, got {batch_size} and {num_samples}.")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    items = [(index, sample) for index in order for sample in range(num_samples)]
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]


def generate_completions(
    model,
    tokenizer,
    prompts: Sequence[str | list[dict[str, str]]],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    num_samples: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    start_batch: int = 0,
    chat_template_kwargs: dict | None = None,
    progress: bool = False,
) -> Iterator[list[Completion]]:
    """
    Complete prompts with any causal language model, batch by batch.

    The settings are those given here: nothing of the checkpoint's generation config but its end-of-sequence tokens
    slips in. The model's mode and the global random state are left as they were.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Plain or thinking model.
        prompts (`Sequence[str | list[dict]]`):
            Texts, or chats as lists of messages, for a tokenizer with a chat template.
        batch_size, num_samples (`int`, *optional*, default to `16` and `1`):
            Completions per batch, and per prompt.
        do_sample (`bool`, *optional*, defaults to `False`):
            Whether to sample; greedy otherwise.
        temperature, top_p, top_k, repetition_penalty:
            As in [`~transformers.GenerationConfig`]; the defaults (`top_k=0`) cut nothing off.
        seed (`int`, *optional*, defaults to `0`):
            Seed, at least 0. Each batch draws from its own stream.
        start_batch (`int`, *optional*, defaults to `0`):
            Batches of [`plan_batches`] to skip, as they are done.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template, the same as in training.
        progress (`bool`, *optional*, defaults to `False`):
            Whether a batch of more than seconds shows how far it is.

    Yields:
        `list[Completion]`: The completions of one batch, in the order of [`plan_batches`].

    Example:

    ```python
    >>> for batch in generate_completions(model, tokenizer, ["What is 2 + 3?"], max_new_tokens=32):
    ...     print(batch[0].text)
    ```
    """
    if num_samples > 1 and not do_sample:
        raise ValueError(
            f"`num_samples={num_samples}` greedy completions would all be the same. Set `do_sample=True`."
        )
    texts, ids = render_prompts(tokenizer, prompts, chat_template_kwargs)
    for index, row in enumerate(ids):
        check_token_ids(row, model, f"Prompt {index}")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}
    stop = stop_tokens(model, tokenizer)
    if not stop:
        raise ValueError(
            "Neither the model's generation config nor the tokenizer has an end-of-sequence token, so no completion "
            "could end by itself. Set `tokenizer.eos_token`."
        )
    pad = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    check_token_ids([pad], model, "The padding of the tokenizer")
    config = own_generation_config(
        model,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        num_beams=1,
        repetition_penalty=repetition_penalty,
        eos_token_id=stop,
        pad_token_id=pad,
        return_dict_in_generate=True,
        **sampling,
    )
    base = model.get_base_model() if is_peft_model(model) else model
    engine = RolloutEngine(progress=progress)
    # It computes a prompt once for its samples, and drops what has ended
    uses_engine = engine.accepts(base, config, {})
    batches = plan_batches([len(row) for row in ids], batch_size, num_samples)
    for number, batch in enumerate(batches[start_batch:], start=start_batch):
        start = time.perf_counter()
        with StockLoopProgress(stop) if progress and not uses_engine else nullcontext() as watcher:
            options = {"custom_generate": engine} if uses_engine else {}
            if watcher is not None:
                options["stopping_criteria"] = [watcher]
            rows, thinking, weights = _generate_batch(
                model, tokenizer, [ids[index] for index, _ in batch], config, (seed, number), options
            )
        seconds = (time.perf_counter() - start) / len(batch)
        yield [
            _completion(item, texts, ids, row, row_thinking, row_weights, stop, tokenizer, seconds)
            for item, row, row_thinking, row_weights in zip(batch, rows, thinking, weights)
        ]


def _generate_batch(model, tokenizer, prompts, config, seed, options):
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), config.pad_token_id)  # [B, P]
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1

    device, was_training = model.device, model.training
    model.eval()
    try:
        with seeded(device, *seed), collect_thinking(tokenizer) as rollouts:
            output = model.generate(
                input_ids=input_ids.to(device),
                attention_mask=attention_mask.to(device),
                generation_config=config,
                tokenizer=tokenizer,
                **options,
            )
    finally:
        model.train(was_training)
    thinking = output.get("thinking_mask")  # [B, C]
    thinking = [None] * len(prompts) if thinking is None else thinking.cpu().tolist()
    weights = [None] * len(prompts)
    if rollouts:
        weights = (rollouts[0].hidden_ratio * rollouts[0].mask).float().cpu().tolist()  # [B, C]
    return output.sequences[:, width:].cpu().tolist(), thinking, weights


def _completion(item, texts, ids, row, thinking, weights, stop, tokenizer, seconds):
    index, sample = item
    end = next((place for place, token in enumerate(row) if token in stop), None)
    length = len(row) if end is None else end + 1
    return Completion(
        index=index,
        sample=sample,
        prompt=texts[index],
        text=tokenizer.decode(row[:length], skip_special_tokens=True),
        prompt_tokens=len(ids[index]),
        completion_tokens=length,
        finished=end is not None,
        thinking_tokens=None if thinking is None else sum(map(bool, thinking[:length])),
        latent_weight=None if weights is None else sum(weights[:length]) / length,
        seconds=seconds,
    )


def stop_tokens(model, tokenizer) -> list[int]:
    """End-of-sequence tokens of the generation config, then the tokenizer's, without repeats."""
    saved = model.generation_config.eos_token_id
    saved = [] if saved is None else saved if isinstance(saved, list) else [saved]
    return list(dict.fromkeys([*saved, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))


@contextmanager
def seeded(device: torch.device, *seeds: int) -> Iterator[None]:
    """Torch's random numbers from a stream that the seeds (such as a seed and a place) name; restored at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        yield


def weights_fingerprint(model: torch.nn.Module) -> str:
    """
    Tell two sets of weights apart, such as those of one folder before and after more training: a hash over the names,
    shapes and up to 512 spread-out elements of each tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // 512)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
