"""The rows that are being decoded, and the prompts they belong to, packed at the beginning of the cache."""

import torch

from .shared_prompt_cache import SharedPromptCache


class RowPool:
    """
    Rows by place in the cache: `rows` (number in the call), `steps` (of the last token) and the place of the prompt.
    The [`SharedPromptCache`] follows: rows and prompts that end are overwritten by the last ones.
    """

    def __init__(self, cache: SharedPromptCache):
        self.cache = cache
        self.rows: list[int] = []
        self.steps: list[int] = []
        self.prompts: list[int] = []
        self.num_prompts = 0
        self._rows = None

    def add(self, groups: list[list[int]], ended: list[bool]) -> None:
        """Add the rows of prompts that lie behind those that are there, unless their first token `ended` them."""
        verdicts = iter(ended)
        for prompt, rows in enumerate(groups, start=self.num_prompts):
            alive = [row for row in rows if not next(verdicts)]
            self.rows += alive
            self.steps += [0] * len(alive)
            self.prompts += [prompt] * len(alive)
        self.num_prompts += len(groups)
        self._pack_prompts()

    def remove(self, ended: list[bool]) -> None:
        """Remove the rows, by place, that ended."""
        if not any(ended):
            return
        targets, sources, order = packing([not each for each in ended])
        if targets:
            self.cache.move_rows(targets, sources)
        self.rows, self.steps, self.prompts = (
            [items[place] for place in order] for items in (self.rows, self.steps, self.prompts)
        )
        self._pack_prompts()

    def _pack_prompts(self):
        used = set(self.prompts)
        if len(used) < self.num_prompts:
            targets, sources, order = packing([place in used for place in range(self.num_prompts)])
            if targets:
                self.cache.move_prompts(targets, sources)
            place_of = {old: new for new, old in enumerate(order)}
            self.prompts = [place_of[prompt] for prompt in self.prompts]
            self.num_prompts = len(order)
        self.cache.set_rows(self.prompts, self.num_prompts)
        self._rows = None

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Rows and steps as tensors `(n,)`, and the largest step."""
        device = self.cache.device
        if self._rows is None:
            self._rows = torch.tensor(self.rows, device=device)
        return self._rows, torch.tensor(self.steps, device=device), max(self.steps)


def packing(kept: list[bool]) -> tuple[list[int], list[int], list[int]]:
    """
    Close gaps (not `kept`) by moving the last items into them: places to fill, the places that move there, and the old
    place of each item in the new order.

    Example:

    ```python
    >>> packing([True, False, True, False, True])
    ([1], [4], [0, 4, 2])
    ```
    """
    places = [place for place, keep in enumerate(kept) if keep]
    targets = [place for place, keep in enumerate(kept[: len(places)]) if not keep]
    sources = places[len(places) - len(targets) :]
    order = list(range(len(places)))
    for target, source in zip(targets, sources):
        order[target] = source
    return targets, sources, order
