"""Rules that choose, token by token, whether a row thinks, until its answer marker or count ends the thinking.

A rule looks at the distribution and the hidden state before a token, and at the token behind it; what it remembers of
a row is a row of a tensor. Nothing leaves the device.

Shapes: R rows of the call, n rows at hand, M numbers remembered, H hidden size, V vocabulary.
"""

import torch


class EntropyRule:
    """
    Blocks of thoughts and of text: thoughts end where the entropy falls below the block's reference, text where it
    rises above. The reference is the entropy at the block's first token.

    Source: SwiReasoning (arXiv 2510.05069), sections 3.2 and 3.3. Deviations: beyond the most blocks a row stays text
    and nothing is injected; no embedding of a thinking token is mixed in where blocks begin and end.

    Args:
        min_latent, min_text (`int`): least length of blocks.
        max_blocks (`int`, *optional*): blocks of thoughts of a row, at most.
    """

    def __init__(self, min_latent: int, min_text: int, max_blocks: int | None):
        self.min_latent, self.min_text = min_latent, min_text
        self.max_blocks = float("inf") if max_blocks is None else max_blocks

    def start(self, rows: int, last_tokens: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """What is remembered `(R, M)` before the first token; `last_tokens` `(R,)` are those of the prompts."""
        thinks = float(self.max_blocks > 0)  # then reference, tokens of the block, blocks of thoughts
        return torch.tensor([thinks, float("nan"), 0.0, thinks], device=device).repeat(rows, 1)

    def decide(self, memory: torch.Tensor, probs: torch.Tensor, hidden: torch.Tensor):
        """
        Whether the next token is a thought `(n,)`, and what is remembered `(n, M)`, from what produces the token:
        `probs` `(n, V)` and `hidden` `(n, H)`.
        """
        thinks, reference, age, blocks = memory.unbind(-1)
        entropy = torch.special.entr(probs).sum(-1).to(memory)
        reference = torch.where(reference.isnan(), entropy, reference)
        falls = (thinks > 0) & (entropy < reference) & (age >= self.min_latent)
        rises = (thinks == 0) & (entropy > reference) & (age >= self.min_text) & (blocks < self.max_blocks)
        switches = falls | rises
        thinks = torch.where(switches, 1 - thinks, thinks)
        reference = torch.where(switches, entropy, reference)
        age = torch.where(switches, 0.0, age) + 1
        return thinks > 0, torch.stack([thinks, reference, age, blocks + rises], dim=-1)

    def after(self, memory: torch.Tensor, tokens: torch.Tensor, thinks: torch.Tensor):
        """The same once tokens `(n,)` are there, for which `thinks` `(n,)` was decided."""
        return thinks, memory


class ConfidenceRule:
    """Thinks where the likeliest token has less than a probability; methods as in [`EntropyRule`]."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def start(self, rows, last_tokens, device):
        return torch.zeros(rows, 0, device=device)

    def decide(self, memory, probs, hidden):
        return probs.amax(-1) < self.threshold, memory

    def after(self, memory, tokens, thinks):
        return thinks, memory


class BoundaryRule:
    """
    Thinks behind one token and before another, which are both text. Methods as in [`EntropyRule`].

    Source: SWITCH (arXiv 2606.13106), section 3.

    Args:
        first, last (`int`): ids of the tokens.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last

    def start(self, rows, last_tokens, device):
        if last_tokens is None:
            return torch.zeros(rows, 1, device=device)
        return (last_tokens == self.first).float()[:, None]

    def decide(self, memory, probs, hidden):
        return memory[:, 0] > 0, memory

    def after(self, memory, tokens, thinks):
        thinks = thinks & (tokens != self.last)
        return thinks, (thinks | (tokens == self.first)).float()[:, None]


class HeadRule:
    """
    A learned choice from the hidden state. Methods as in [`EntropyRule`].

    Source: TARPO (arXiv 2606.05859). Its router is one linear map here, whose log-odds of thinking begin at 0.

    Args:
        head (`torch.nn.Module`): hidden states `(n, H)` -> log-odds of thinking `(n,)`.
    """

    def __init__(self, head: torch.nn.Module):
        self.head = head
        self.logits = None  # of the last decision

    def start(self, rows, last_tokens, device):
        return torch.zeros(rows, 0, device=device)

    def decide(self, memory, probs, hidden, uniform=None):
        """Sampled by numbers `uniform` `(n,)` in (0, 1), or else the likelier one; at even odds no thought."""
        self.logits = self.head(hidden)
        return self.logits.sigmoid() > (0.5 if uniform is None else uniform), memory

    def after(self, memory, tokens, thinks):
        return thinks, memory


def thinking_rule(config, head: torch.nn.Module | None):
    """
    The rule of a config's schedule, or `None` for those that let each token think.

    Raises:
        `ValueError`: if the schedule is `"head"` and the model has none.
    """
    schedule = config.thinking_method.schedule
    if schedule == "entropy":
        return EntropyRule(config.thinking_min_latent, config.thinking_min_text, config.thinking_max_blocks)
    if schedule == "confidence":
        return ConfidenceRule(config.thinking_threshold)
    if schedule == "boundary":
        return BoundaryRule(config.thinking_start_id, config.thinking_end_id)
    if schedule != "head":
        return None
    if head is None:
        raise ValueError(
            f"`thinking_mode={config.thinking_mode!r}` needs the module `thinking_head`, which a model has that was "
            "loaded in such a mode. Load it with `thinking_mode='tarpo'`."
        )
    return HeadRule(head)
