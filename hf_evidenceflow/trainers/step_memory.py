"""What an optimizer step of online training takes at most, before the first one: from what a short pass holds.

A pass over a few tokens tells what a position costs in the layers and outside of them, and in the cache, whatever the
architecture, the adapter and the precision. Lengths are the longest that the settings allow.
"""

from dataclasses import dataclass

import torch
from datasets import Dataset

from ..models.decoder import base_causal_lm, decoder_parts
from ..rollouts.prefill import prefill
from ..rollouts.support import without_training
from ..tasks.prompts import prompt_length
from .head_tiles import tile_memory


_SHORT, _LONG = 16, 48  # tokens of the two passes, whose difference is that of positions
_RECORD_COPIES = 3  # the records, the batch made of them, its shuffled rows
_TOKEN_RECORD = 21  # token, flag, three numbers of the gates
_LOGITS_COPIES = 6  # of a rollout's step: scores, probabilities, their sums
_RECOMPUTED = 1.5  # a layer's activations with their gradients
_LONG_TEXTS = 64  # of which one has the most tokens, nearly always
_UNKNOWN_PROMPT = 1024


@dataclass(frozen=True)
class ModelCosts:
    """
    Bytes of a model.

    Attributes:
        layer, outside (`float`): what a position holds for the gradient in one layer, and outside of the layers.
        layers (`int`): calls of layers in a pass.
        states (`float`): the input of a layer, at a position.
        cached (`float`): keys and values of a position.
        records (`float`): what a rollout writes down for a token.
        logits (`int`): fp32 logits of a token.
        tile (`int`): the largest tile of the head with its copies.
        gradients, optimizer (`int`): gradients, and what the optimizer is going to hold.
    """

    layer: float
    outside: float
    layers: int
    states: float
    cached: float
    records: float
    logits: int
    tile: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class StepLoad:
    """
    What the settings ask of a process. Lengths are in tokens.

    Attributes:
        update_rows, decoded_rows, generated_rows (`int`):
            Rows of a backward pass, of a step of the rollout, and of the whole rollout.
        group (`int`): completions of a prompt, which share it.
        prompt, completion (`int`): longest prompt and completion.
        pass_tokens (`int`, *optional*): most positions of a pass.
        checkpointed (`bool`): whether the update keeps the inputs of its layers only.
    """

    update_rows: int
    decoded_rows: int
    generated_rows: int
    group: int
    prompt: int
    completion: int
    pass_tokens: int | None
    checkpointed: bool

    def positions(self, rows: int) -> int:
        """Of so many rows with the prompts that they share."""
        return -(-rows // self.group) * self.prompt + rows * (self.completion + 1)


@dataclass(frozen=True)
class StepMemory:
    """Bytes beyond what is held before the first step: of the rollout, of the update, of the optimizer's states."""

    rollout: float
    update: float
    optimizer: float

    @property
    def peak(self) -> float:
        return self.optimizer + max(self.rollout, self.update)


def step_memory(costs: ModelCosts, load: StepLoad) -> StepMemory:
    """What a step takes of a model under a load."""
    prompts = -(-load.decoded_rows // load.group) * load.prompt
    records = _RECORD_COPIES * costs.records * load.generated_rows * load.completion
    rollout = costs.cached * load.positions(load.decoded_rows) + max(
        _LOGITS_COPIES * costs.logits * load.decoded_rows, costs.layer * prompts
    )
    positions = load.positions(load.update_rows)
    kept = costs.layers * (costs.states if load.checkpointed else costs.layer) + costs.outside
    at_once = min(positions, load.pass_tokens or positions)
    recomputed = (_RECOMPUTED if load.checkpointed else _RECOMPUTED - 1) * costs.layer * at_once
    update = kept * positions + max(costs.tile, recomputed) + costs.gradients
    return StepMemory(records + rollout, records + update, costs.optimizer)


def model_costs(trainer) -> ModelCosts:
    """
    Measure the model of an [`HRPOTrainer`], by two short passes as its update makes them and two of a prompt.

    Raises:
        `ValueError`: if its layers are not found.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    base, device = base_causal_lm(model), trainer.accelerator.device
    model.train()  # as the first step will; bitsandbytes repacks 4-bit layers that are not in training
    trainer._packs(model, {})  # checks the model by passes of its own, once
    short, long = (_held_by_pass(trainer, model, count) for count in (_SHORT, _LONG))
    layers, layer, outside = short[0], *((b - a) / (_LONG - _SHORT) for a, b in zip(short[1:], long[1:]))
    with torch.no_grad(), without_training(base):
        caches = [_cache_bytes(prefill(base, [[0] * count], device)[1]) for count in (_SHORT, _LONG)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    states = config.hidden_size * base.dtype.itemsize
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    tile = tile_memory(device, 1 << 20, config.vocab_size, base.dtype.itemsize)
    if head.weight.requires_grad:  # TRL sums its gradient in fp32
        tile += 4 * head.weight.numel()
    return ModelCosts(
        layer=layer / layers,
        outside=outside,
        layers=layers,
        states=states,
        cached=(caches[1] - caches[0]) / (_LONG - _SHORT),
        records=states + _TOKEN_RECORD if trainer.thinking_mode != "none" else _TOKEN_RECORD,
        logits=4 * config.vocab_size,
        tile=tile,
        gradients=gradients,
        optimizer=_optimizer_bytes(trainer, gradients),
    )


def _held_by_pass(trainer, model, count):
    """Calls of layers, and bytes held for the gradient inside and outside of them, of a row with so many tokens."""
    device, base = trainer.accelerator.device, base_causal_lm(model)
    ids = torch.zeros(1, count + 1, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    if trainer.thinking_mode != "none":
        states = torch.ones(1, count, base.config.hidden_size, dtype=base.dtype, device=device)
        trainer._thinking = states, mask[:, 1:].bool()
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held, inside, calls = [0, 0], [False], [0]

    def enter(module, args):
        inside[0], calls[0] = True, calls[0] + 1

    def leave(module, args, output):
        inside[0] = False

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages.add(storage.data_ptr())
            held[0 if inside[0] else 1] += storage.nbytes()
        return tensor  # kept, so that no other tensor takes its place

    layers = decoder_parts(model).layers
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with (
            torch.enable_grad(),
            without_training(model),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            trainer._get_per_token_logps_and_entropies(model, ids, mask, count)
    finally:
        trainer._thinking = None
        for handle in handles:
            handle.remove()
    return calls[0], *held


def _cache_bytes(cache):
    tensors = (value for layer in cache.layers for value in vars(layer).values() if torch.is_tensor(value))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_bytes(trainer, gradients):
    """Of the two moments of Adam; other optimizers hold as much or less."""
    if trainer.optimizer.state:  # of a checkpoint: held already
        return 0
    return gradients // 2 if "bit" in trainer.args.optim else 2 * gradients


def step_load(trainer) -> StepLoad:
    """The load of an [`HRPOTrainer`], with the longest prompt of its data."""
    args = trainer.args
    generated = args.per_device_train_batch_size * args.steps_per_generation
    decoded = min(generated, args.rollout_max_rows or generated) if args.use_rollout_engine else generated
    if args.use_vllm:  # has taken its memory already
        decoded = 0
    return StepLoad(
        update_rows=args.per_device_train_batch_size,
        decoded_rows=decoded,
        generated_rows=generated,
        group=args.num_generations,
        prompt=_longest_prompt(trainer),
        completion=args.max_completion_length,
        pass_tokens=args.update_max_tokens,
        checkpointed=args.gradient_checkpointing,
    )


def _longest_prompt(trainer):
    """Tokens of the longest prompt; of a stream or an environment, as many as are allowed."""
    dataset, limit = trainer.train_dataset, trainer.args.max_prompt_length or _UNKNOWN_PROMPT
    if not isinstance(dataset, Dataset) or trainer.environment_factories is not None:
        return limit
    prompts = sorted(dataset["prompt"], key=lambda prompt: len(str(prompt)))[-_LONG_TEXTS:]
    return max(prompt_length(prompt, trainer._tokenizer, trainer.chat_template_kwargs) for prompt in prompts)
