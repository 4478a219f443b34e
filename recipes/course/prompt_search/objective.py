"""
How well a prompt makes a causal LM give the right answers: the loss of many prompts at once, its gradient, accuracy.

An item reads `query prompt between answer`. The loss is -log p(answer), summed over the answer's tokens, mean over the
items.

Shapes: M items, B prompts, L tokens of a prompt, T tokens of the longest item, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from hf_evidenceflow.recipes.course.prompt_search.gcg import one_hot_gradient


class Item(NamedTuple):
    """
    A question of a task.

    Args:
        query (`list[int]`):
            Tokens before the prompt.
        answer (`list[int]`):
            Tokens that it should bring about, 1 or more.
        between (`Sequence[int]`, *optional*, defaults to `()`):
            Tokens after the prompt and before the answer.
    """

    query: list[int]
    answer: list[int]
    between: Sequence[int] = ()


class PromptObjective:
    """
    Losses of prompts on items.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal LM; it is not trained.
        items (`Sequence[Item]`):
            The items.
        rows_at_once (`int`, *optional*, defaults to `512`):
            Items times prompts in a forward pass.

    Raises:
        `ValueError`: if there is no item, or one has no answer, or nothing but the prompt before it.
    """

    def __init__(self, model, items: Sequence[Item], rows_at_once: int = 512):
        if not items:
            raise ValueError("There are no items to evaluate a prompt on. Give at least one.")
        for item in items:
            if not item.answer or not (item.query or item.between):
                raise ValueError(
                    f"An item needs an answer of 1 token or more, and 1 beside the prompt before it, got {item}."
                )
        self.model, self.items, self.rows_at_once = model.eval().requires_grad_(False), list(items), rows_at_once
        self.embedding = model.get_input_embeddings()
        self.vocab_size = self.embedding.weight.shape[0]

    @torch.no_grad()
    def losses(self, prompts: torch.Tensor) -> torch.Tensor:
        """
        Args:
            prompts (`torch.Tensor` of shape `(B, L)`):
                Token ids.

        Returns:
            `torch.Tensor` of shape `(B,)`: the loss of each prompt.
        """
        at_once = max(1, self.rows_at_once // len(self.items))
        return torch.cat([self._token_losses(some)[0].sum(-1).mean(-1) for some in prompts.split(at_once)]).cpu()

    @torch.no_grad()
    def right(self, prompt: torch.Tensor) -> list[bool]:
        """
        Args:
            prompt (`torch.Tensor` of shape `(L,)`):
                Token ids.

        Returns:
            `list[bool]`: for each item whether every token of its answer is the most probable one of all.
        """
        return self._token_losses(prompt[None])[1].all(-1)[0].tolist()

    def gradient(self, prompt: torch.Tensor) -> torch.Tensor:
        """
        Args:
            prompt (`torch.Tensor` of shape `(L,)`):
                Token ids.

        Returns:
            `torch.Tensor` of shape `(L, V)`: the gradient of the loss at the prompt's one-hot vectors.
        """

        def loss(one_hot):
            return self._token_losses(prompt[None], one_hot)[0].sum(-1).mean()

        return one_hot_gradient(loss, prompt.to(self.model.device), self.vocab_size).cpu()

    def _token_losses(self, prompts: torch.Tensor, one_hot: torch.Tensor | None = None):
        """Losses of the answers' tokens and whether they are the most probable, both `[B, M, longest answer]`."""
        device, length = self.model.device, prompts.shape[1]
        ids, mask, is_prompt, answers = self._template(length)
        rows = ids[None].repeat(len(prompts), 1, 1)  # [B, M, T]
        rows[:, is_prompt] = prompts.repeat(1, len(self.items))
        rows, mask = rows.flatten(0, 1).to(device), mask.repeat(len(prompts), 1).to(device)  # [B * M, T]
        if one_hot is None:
            logits = self.model(input_ids=rows, attention_mask=mask).logits
        else:
            embedded = self.embedding(rows)
            prompt = one_hot.to(self.embedding.weight.dtype) @ self.embedding.weight  # [L, hidden]
            embedded[is_prompt.to(device)] = prompt.repeat(len(self.items), 1)
            logits = self.model(inputs_embeds=embedded, attention_mask=mask).logits
        places = answers.clamp(min=1).repeat(len(prompts), 1).to(device)  # [B * M, longest answer]
        real = (answers > 0).repeat(len(prompts), 1).to(device)
        targets = rows.gather(1, places)
        before = logits.gather(1, (places - 1)[..., None].expand(-1, -1, logits.shape[-1])).float()
        losses = -before.log_softmax(-1).gather(2, targets[..., None])[..., 0]
        right = (before.argmax(-1) == targets) | ~real
        shape = (len(prompts), len(self.items), -1)
        return (losses * real).view(shape), right.view(shape)

    def _template(self, length: int):
        """Items with room for a prompt: ids, attention mask and places of the prompt `[M, T]`, places of the answers
        `[M, longest answer]`, 0 where an answer is shorter."""
        longest = max(len(item.query) + length + len(item.between) + len(item.answer) for item in self.items)
        ids = torch.zeros(len(self.items), longest, dtype=torch.long)
        mask, is_prompt = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        answers = torch.zeros(len(self.items), max(len(item.answer) for item in self.items), dtype=torch.long)
        for row, (query, answer, between) in enumerate(self.items):
            start, asked = len(query), len(query) + length + len(between)
            end = asked + len(answer)
            ids[row, :start] = torch.tensor(query, dtype=torch.long)
            ids[row, start + length : end] = torch.tensor([*between, *answer])
            mask[row, :end] = 1
            is_prompt[row, start : start + length] = True
            answers[row, : len(answer)] = torch.arange(asked, end)
        return ids, mask, is_prompt, answers
