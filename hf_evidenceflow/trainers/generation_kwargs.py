"""What `generation_kwargs` may hold in rollouts, and the end of completions that a stop string ends."""

import difflib
import functools
from contextlib import contextmanager

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig
from transformers.generation import GenerationMode, StoppingCriteriaList, StopStringCriteria


# The loss reads the trainer's argument, so that another value here would make rollouts of another policy
_OF_THE_TRAINER = {
    "temperature": "temperature",
    "max_new_tokens": "max_completion_length",
    "max_length": "max_completion_length",
}
_IMPOSSIBLE = {
    "num_return_sequences": "a prompt is in the batch once for each of its `num_generations`",
    "return_dict_in_generate": "TRL reads the tokens as one tensor",
    "token_healing": "it changes the prompts",
    "disable_compile": "TRL sets it",
}


def check_generation_kwargs(args, thinking_mode: str) -> None:
    """
    Refuse, with a `ValueError` that says what to do, entries of `generation_kwargs` that are unknown or could not do
    in rollouts what they say. With `use_vllm` the entries are vLLM's own, which are not looked at.
    """
    entries = args.generation_kwargs or {}
    if args.use_vllm or not entries:
        return
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
    for name, value in entries.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"`generation_kwargs` has the entry {name!r}, which `generate` does not know. Did you mean {near!r}?"
            )
        if name in _OF_THE_TRAINER:
            argument = _OF_THE_TRAINER[name]
            if value != (expected := getattr(args, argument)):
                raise ValueError(
                    f"`generation_kwargs={{{name!r}: {value!r}}}` contradicts `{argument}={expected!r}`, which the "
                    f"loss reads too. Set `{argument}={value!r}` and leave the entry out."
                )
        elif name in _IMPOSSIBLE and value and (name, value) != ("num_return_sequences", 1):
            raise ValueError(
                f"`generation_kwargs={{{name!r}: {value!r}}}` cannot work in rollouts: {_IMPOSSIBLE[name]}. Leave it "
                "out."
            )
    if thinking_mode != "none":
        mode = GenerationConfig(**{"do_sample": True, **entries}).get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(
                f"`generation_kwargs={entries}` asks for {mode.value.replace('_', ' ')}, and thinking models "
                f"(`thinking_mode={thinking_mode!r}`) generate by greedy search and sampling only."
            )


class StopStringsMixin:
    """Ends rollouts at stop strings of `generation_kwargs`; put before a class derived from [`~trl.GRPOTrainer`]."""

    _stop_criterion = None

    def _prepare_generation_kwargs(self):
        """For the end of the constructor."""
        if self.args.use_vllm:
            return
        entries = self.args.generation_kwargs or {}
        if entries.get("eos_token_id") is not None:
            ids = entries["eos_token_id"]
            self.eos_token_ids = [ids] if isinstance(ids, int) else list(ids)
        strings = entries.get("stop_strings")
        if not strings:
            return
        strings = [strings] if isinstance(strings, str) else strings
        if not all(isinstance(string, str) and string for string in strings):
            raise ValueError(f"`stop_strings` must be texts that are not empty, got {strings!r}.")
        if self.args.use_transformers_continuous_batching:
            raise ValueError(
                f"`stop_strings={strings!r}` is not supported by continuous batching. Set "
                "`use_transformers_continuous_batching=False`."
            )
        if self.args.mask_truncated_completions:
            raise ValueError(
                f"`mask_truncated_completions=True` with `stop_strings={strings!r}`: TRL takes completions that end "
                "at a stop string for truncated ones and would train on none of them. Set it to False."
            )
        # As a criterion of the call, since TRL hands no tokenizer on, and `generate` none to a loop of ours
        self._stop_criterion = StopStringCriteria(self._tokenizer, strings)
        self.generation_config.stop_strings = None
        self.generation_kwargs.pop("stop_strings")

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        """Differs from GRPOTrainer in cutting completions behind a stop string, where TRL keeps the padding."""
        if self._stop_criterion is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        criteria = StoppingCriteriaList([self._stop_criterion])
        with generate_with(self.accelerator.unwrap_model(self.model), stopping_criteria=criteria):
            completion_ids, logps = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        pad_id = self._tokenizer.pad_token_id
        stops = stop_lengths(self._stop_criterion, prompt_ids, completion_ids, pad_id)
        return [ids[:stop] for ids, stop in zip(completion_ids, stops)], logps

    def _generate(self, prompts):
        """Differs from GRPOTrainer in counting completions that end at a stop string as terminated."""
        result = super()._generate(prompts)
        if self._stop_criterion is not None:
            rows = self._lengths_and_ends(*result[:3])
            rows = self.accelerator.gather(torch.tensor(rows, device=self.accelerator.device))
            ended = rows[:, 1].bool()
            lengths = rows[ended, 0].float() if ended.any() else torch.zeros(1)
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["completions/clipped_ratio"][-1] = 1 - ended.float().mean().item()
            for name in ("mean", "min", "max"):
                metrics[f"completions/{name}_terminated_length"][-1] = getattr(lengths, name)().item()
        return result

    def _lengths_and_ends(self, prompt_ids, completion_ids, tool_mask):
        """Tokens that the model wrote in each completion, which may hold results of tools, and whether it ended."""
        pad_id = self._tokenizer.pad_token_id
        texts = [torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompt_ids, completion_ids)]
        texts = pad_sequence(texts, batch_first=True, padding_value=pad_id, padding_side="left")
        stopped, ends = self._stop_criterion(texts, None).tolist(), {*self.eos_token_ids, pad_id}
        lengths = map(len, completion_ids) if tool_mask is None else map(sum, tool_mask)
        return [[count, stop or ids[-1] in ends] for count, stop, ids in zip(lengths, stopped, completion_ids)]


@contextmanager
def generate_with(model, **further):
    """Arguments of `model.generate` for which TRL's call has no place."""
    before = vars(model).get("generate")
    model.generate = functools.partial(model.generate, **further)
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


def stop_lengths(
    criterion, prompt_ids: list[list[int]], completion_ids: list[list[int]], pad_id: int
) -> list[int | None]:
    """
    Tokens of each completion up to the first stop string, or `None` where there is none. The criterion ended the rows
    while they were generated, so a string may begin in the prompt, and what follows it is padding.
    """
    width, count = (max(map(len, ids)) for ids in (prompt_ids, completion_ids))
    tokens = torch.full((len(prompt_ids), width + count), pad_id)
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids)):
        tokens[row, width - len(prompt) : width + len(completion)] = torch.tensor([*prompt, *completion])
    stops = [None] * len(prompt_ids)
    for length in range(1, count + 1):
        for row in criterion(tokens[:, : width + length], None).nonzero().flatten().tolist():
            if stops[row] is None and length <= len(completion_ids[row]):
                stops[row] = length
    return stops
