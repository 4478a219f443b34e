"""Interventions on thinking: what changes when the states of a model are taken away or exchanged.

Shapes: R rows of a call, n rows at hand, m rows of these that think, H hidden size.
"""

from contextvars import ContextVar

import torch
import torch.nn.functional as F


INTERVENTIONS = ("off", "zero", "shuffle", "mean", "swap", "direction")

_intervention: ContextVar[str | None] = ContextVar("thinking_intervention", default=None)


def current_intervention() -> str | None:
    """Kind of the innermost [`ThinkingIntervention`] block of this thread, if there is one."""
    return _intervention.get()


class ThinkingIntervention:
    """
    Changes the thinking of every `generate()` call of a thinking model inside the block, in this thread. What the
    calls record are the states that were fed. Of nested blocks the innermost counts.

    Args:
        kind (`str`):
            `"off"`: nothing is fused, tokens are fed as themselves; where decoding chooses the tokens of thoughts,
            this is `thinking_mode="none"`. `"zero"`: states are 0. `"shuffle"`: each row that thinks gets the state of
            another one at the same pass, of another prompt where there are enough. `"mean"`: each gets the mean over
            the rows that think. `"swap"`: each row has one partner with another prompt for the whole call, whose state
            at the same pass it gets, or the last one that the partner had, so that it is fed a whole train of thought
            of another problem. `"direction"`: as `"swap"`, but at the norm of the row's own state. A row that is the
            last to think gets what was there when two did.

    Raises:
        `ValueError`: for another kind; in `generate`, if `"shuffle"` or `"mean"` has no second row to take from, or a
            row no partner.

    Example:

    ```python
    >>> from hf_evidenceflow import ThinkingIntervention

    >>> with ThinkingIntervention("shuffle"):
    ...     model.generate(**inputs, max_new_tokens=64)
    ```
    """

    def __init__(self, kind: str):
        if kind not in INTERVENTIONS:
            raise ValueError(f"`kind` must be one of {', '.join(map(repr, INTERVENTIONS))}, got {kind!r}.")
        self.kind = kind
        self._tokens: list = []

    def __enter__(self):
        self._tokens.append(_intervention.set(self.kind))
        return self

    def __exit__(self, *error):
        _intervention.reset(self._tokens.pop())


def derangement(groups: torch.Tensor) -> torch.Tensor:
    """
    Other places `(m,)` for m rows, m at least 2: no row keeps its place, and none gets one of its own group where no
    group has more than half of the rows.

    Example:

    ```python
    >>> derangement(torch.tensor([0, 0, 1, 2]))
    tensor([2, 3, 0, 1])
    ```
    """
    order = groups.argsort(stable=True)
    largest = int(groups.unique(return_counts=True)[1].max())
    places = torch.empty_like(order)
    places[order] = order.roll(-(largest if largest < len(groups) else 1))
    return places


class Swap:
    """
    The states of one call's rows, each given to the row whose partner it is.

    Args:
        groups (`torch.Tensor` of shape `(R,)`): number of each row's prompt.

    Raises:
        `ValueError`: if there is no partner with another prompt for each row.
    """

    def __init__(self, groups: torch.Tensor):
        self.partners = derangement(groups) if len(groups) > 1 else torch.zeros_like(groups)
        if (groups[self.partners] == groups).any():
            raise ValueError(
                "This ThinkingIntervention gives each row a partner with another prompt, so that no more than half of "
                f"the rows may share one, got {groups.unique(return_counts=True)[1].tolist()} rows of each prompt. "
                "Generate for several prompts at once."
            )
        self.latest: torch.Tensor | None = None  # [R, H]
        self.known = torch.zeros_like(groups, dtype=torch.bool)

    def __call__(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The partners' states `(m, H)` of the rows `(m,)`, which have these."""
        if self.latest is None:
            self.latest = states.new_zeros(len(self.known), states.shape[1])
        self.latest[rows], self.known[rows] = states, True
        partners = self.partners[rows]
        if not self.known[partners].all():
            raise ValueError(
                "This ThinkingIntervention needs the rows of a call to think at the same time, and one thinks before "
                "its partner. Leave the engine's `max_rows` out."
            )
        return self.latest[partners]


class StateIntervention:
    """
    Applies an intervention to the states of one call.

    Args:
        kind (`str`): of a [`ThinkingIntervention`], not `"off"`.
        groups (`torch.Tensor` of shape `(R,)`): number of each row's prompt.
    """

    def __init__(self, kind: str, groups: torch.Tensor):
        self.kind, self.groups = kind, groups
        self.states = self.rows = None  # of the last pass with two rows that thought
        self.swap = Swap(groups) if kind in ("swap", "direction") else None

    def __call__(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What takes the place of the states `(m, H)` of the rows `(m,)` that think."""
        if self.kind == "zero":
            return torch.zeros_like(states)
        if len(rows) == 0:
            return states
        if self.swap is not None:
            partners = self.swap(states, rows)
            if self.kind == "swap":
                return partners
            return F.normalize(partners, dim=-1) * states.norm(dim=-1, keepdim=True)
        if len(rows) > 1:
            self.states, self.rows = states, rows
        if self.states is None:
            raise ValueError(
                f"ThinkingIntervention({self.kind!r}) needs at least two rows that think at the same time, got one. "
                "Generate for several prompts at once (and raise the engine's `max_rows`)."
            )
        if self.kind == "mean":
            return self.states.mean(0, keepdim=True).expand_as(states)
        if len(rows) > 1:
            return states[derangement(self.groups[rows])]
        return self.states[self._donor(rows)][None]

    def _donor(self, row):
        strange = self.groups[self.rows] != self.groups[row]
        return int(((self.rows != row).long() + strange.long()).argmax())
