"""
Chinchilla's parametric loss L(N, D) = E + A / N^alpha + B / D^beta, its best use of a compute budget, and the inverse:
the smallest budget that reaches a loss.

N is the number of parameters, D of training tokens, C = 6 N D the training FLOPs, L the loss in nats a token.

Source: Hoffmann et al. 2022 (2203.15556), equations 2 to 4. The inverse is not in the paper: at the optimum the two
reducible terms are in the fixed proportion A / N^alpha : B / D^beta = beta : alpha, so that L - E determines both.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


FLOPS_PER_PARAMETER_AND_TOKEN = 6


class Allocation(NamedTuple):
    """
    A budget and how it is spent.

    Args:
        compute (`float`):
            Training FLOPs.
        parameters (`float`):
            Parameters of the model.
        tokens (`float`):
            Training tokens.
        loss (`float`):
            Loss that is reached, in nats a token.
    """

    compute: float
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class ParametricLoss:
    """
    Loss as a function of parameters and tokens.

    Args:
        E (`float`):
            Irreducible loss: the entropy of the text. 0 or more.
        A, alpha (`float`):
            Factor and exponent of what too few parameters cost. Positive.
        B, beta (`float`):
            Factor and exponent of what too few tokens cost. Positive.

    Example:

    ```python
    >>> from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import HOFFMANN

    >>> HOFFMANN.optimal(5.76e23).parameters  # Chinchilla's budget
    3.2e10...
    ```
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self):
        if not (np.isfinite(self.E) and self.E >= 0):
            raise ValueError(f"`E` must be a finite loss of at least 0, got {self.E}.")
        for name in ("A", "B", "alpha", "beta"):
            require_positive(**{name: getattr(self, name)})

    def __call__(self, parameters, tokens):
        """
        Args:
            parameters, tokens (`float` or `np.ndarray`):
                Sizes, of shapes that broadcast.

        Returns:
            `float` or `np.ndarray`: the loss in nats a token.
        """
        require_positive(parameters=parameters, tokens=tokens)
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    @property
    def parameter_exponent(self) -> float:
        """a in N* ~ C^a: the share of a growing budget, in orders of magnitude, that goes into the model."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, compute: float) -> Allocation:
        """
        The model and the data that make the most of a budget: N* = G (C / 6)^a and D* = C / (6 N*), with
        G = (alpha A / (beta B))^(1 / (alpha + beta)).

        Args:
            compute (`float`):
                Training FLOPs.

        Returns:
            [`Allocation`]: the optimum.

        Raises:
            `ValueError`: if `compute` is not positive.
        """
        require_positive(compute=compute)
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (compute / FLOPS_PER_PARAMETER_AND_TOKEN) ** self.parameter_exponent
        tokens = compute / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
        return Allocation(compute, parameters, tokens, self(parameters, tokens))

    def cheapest(self, loss: float) -> Allocation:
        """
        The smallest budget that reaches a loss: N = (A (alpha + beta) / (beta (L - E)))^(1 / alpha), and
        D = (B (alpha + beta) / (alpha (L - E)))^(1 / beta).

        Args:
            loss (`float`):
                Loss to reach, in nats a token.

        Returns:
            [`Allocation`]: the budget and its use.

        Raises:
            `ValueError`: if no finite budget reaches the loss.
        """
        reducible = loss - self.E
        if not (np.isfinite(loss) and reducible > 0):
            raise ValueError(
                f"No finite budget reaches a loss of {loss}: the irreducible loss E is {self.E:.4g}. Ask for a "
                "larger loss."
            )
        both = self.alpha + self.beta
        parameters = (self.A * both / (self.beta * reducible)) ** (1 / self.alpha)
        tokens = (self.B * both / (self.alpha * reducible)) ** (1 / self.beta)
        return Allocation(FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens, parameters, tokens, loss)


def require_positive(**values) -> None:
    """
    Refuse what has no logarithm.

    Args:
        **values (`float` or `np.ndarray`):
            Values by their name.

    Raises:
        `ValueError`: if one of them is not positive and finite; it names it.
    """
    for name, value in values.items():
        array = np.asarray(value, dtype=float)
        if not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"`{name}` must be positive and finite, got {value}.")


# Hoffmann et al. 2022, equation 10 (rounded, as printed), and the fit of Besiroglu et al. 2024 (2404.10102) to the
# runs that they read off its figure: the printed constants neither fit those runs nor agree with approaches 1 and 2.
HOFFMANN = ParametricLoss(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
BESIROGLU = ParametricLoss(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
PRESETS = {"hoffmann": HOFFMANN, "besiroglu": BESIROGLU}
