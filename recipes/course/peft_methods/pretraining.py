"""A tiny Llama that has read a text: the base model of the comparison."""

import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.recipes.course.peft_methods.tuning import batch_indices


# Embeddings and head are not tied, so that the head can be tuned alone; two heads share their keys and values, so that
# a prefix is narrower than the model
TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def pretrain_tiny_llama(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    batch_size: int = 16,
    block_size: int = 64,
    learning_rate: float = 4e-3,
    seed: int = 0,
) -> tuple[PreTrainedModel, dict]:
    """
    Pretrain a tiny Llama from random weights on blocks of a text.

    Args:
        documents (`Sequence[str]`):
            The text; an end-of-text token is put after each document.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The tokenizer.
        steps, batch_size, block_size (`int`):
            Steps, rows of each, and tokens a row.
        learning_rate (`float`, *optional*, defaults to `4e-3`):
            Highest learning rate; a tenth of the steps warm up, then it goes down to 0 on a cosine.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the order; the weights are torch's.

    Returns:
        `tuple`: the model, and a `dict` with the `loss` of the last tenth of the steps in nats a token, and `seconds`.

    Raises:
        `ValueError`: if the text is shorter than one block.
    """
    ends = [tokenizer.eos_token_id]
    ids = [token for document in documents for token in (*tokenizer(document)["input_ids"], *ends)]
    if len(ids) < block_size:
        raise ValueError(f"The text has {len(ids)} tokens, fewer than a block of {block_size}. Give more text.")
    blocks = torch.tensor(ids[: len(ids) // block_size * block_size]).view(-1, block_size)
    start, losses = time.perf_counter(), []
    model = model_from_scratch("llama", TINY_LLAMA, tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    for indices in batch_indices(len(blocks), steps, batch_size, seed):
        loss = model(input_ids=blocks[indices], labels=blocks[indices]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return model.eval(), {"loss": sum(last) / len(last), "seconds": time.perf_counter() - start}
