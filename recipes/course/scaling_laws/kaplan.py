"""
Kaplan et al.'s scaling laws (2001.08361): the loss without an irreducible part, for N non-embedding parameters and D
tokens of WebText2, in nats a token of GPT-2's vocabulary. Constants: equations 1.1, 1.2 and 1.5, and table 2.

Two differences to Chinchilla's form matter: N leaves the embeddings out, and the learning-rate schedule was not fitted
to the length of each run. They found N* ~ C^0.73 where Hoffmann et al. found about C^0.5.
"""

import numpy as np

from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import require_positive


PETAFLOP_DAY = 1e15 * 86400  # FLOPs


def loss_of_size(parameters, critical_parameters: float = 8.8e13, exponent: float = 0.076):
    """
    L(N) = (N_c / N)^alpha_N: enough data, trained to convergence.

    Args:
        parameters (`float` or `np.ndarray`):
            N, non-embedding parameters.
        critical_parameters (`float`, *optional*, defaults to `8.8e13`):
            N_c.
        exponent (`float`, *optional*, defaults to `0.076`):
            alpha_N.

    Returns:
        `float` or `np.ndarray`: nats a token.
    """
    require_positive(parameters=parameters, critical_parameters=critical_parameters, exponent=exponent)
    return (critical_parameters / np.asarray(parameters, dtype=float)) ** exponent


def loss_of_data(tokens, critical_tokens: float = 5.4e13, exponent: float = 0.095):
    """
    L(D) = (D_c / D)^alpha_D: a large model, stopped early.

    Args:
        tokens (`float` or `np.ndarray`):
            D, tokens of the training set.
        critical_tokens (`float`, *optional*, defaults to `5.4e13`):
            D_c.
        exponent (`float`, *optional*, defaults to `0.095`):
            alpha_D.

    Returns:
        `float` or `np.ndarray`: nats a token.
    """
    require_positive(tokens=tokens, critical_tokens=critical_tokens, exponent=exponent)
    return (critical_tokens / np.asarray(tokens, dtype=float)) ** exponent


def loss_of_compute(compute):
    """
    L(C) = (C_c / C)^alpha_C of the least compute for a loss (equation 1.3): alpha_C = 0.050, C_c = 3.1e8 PF-days.

    Args:
        compute (`float` or `np.ndarray`):
            C, FLOPs.

    Returns:
        `float` or `np.ndarray`: nats a token.
    """
    require_positive(compute=compute)
    return (3.1e8 * PETAFLOP_DAY / np.asarray(compute, dtype=float)) ** 0.050


def optimal(compute) -> tuple:
    """
    The best use of a budget (table 6): N = 1.3e9 C^0.73 and D = 2e10 C^0.27, with C in PF-days.

    Args:
        compute (`float` or `np.ndarray`):
            C, FLOPs.

    Returns:
        `tuple`: non-embedding parameters and tokens.
    """
    require_positive(compute=compute)
    days = np.asarray(compute, dtype=float) / PETAFLOP_DAY
    return 1.3e9 * days**0.73, 2e10 * days**0.27


def loss_of_size_and_data(
    parameters,
    tokens,
    critical_parameters: float = 6.4e13,
    critical_tokens: float = 1.8e13,
    parameter_exponent: float = 0.076,
    token_exponent: float = 0.103,
):
    """
    L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D.

    The defaults were fitted together and differ from those of the two separate laws.

    Args:
        parameters, tokens (`float` or `np.ndarray`):
            N and D, of shapes that broadcast. `inf` leaves the other law.
        critical_parameters, critical_tokens (`float`, *optional*, default to `6.4e13` and `1.8e13`):
            N_c and D_c.
        parameter_exponent, token_exponent (`float`, *optional*, default to `0.076` and `0.103`):
            alpha_N and alpha_D.

    Returns:
        `float` or `np.ndarray`: nats a token.
    """
    require_positive(critical_parameters=critical_parameters, critical_tokens=critical_tokens)
    require_positive(parameter_exponent=parameter_exponent, token_exponent=token_exponent)
    parameters, tokens = np.asarray(parameters, dtype=float), np.asarray(tokens, dtype=float)
    if not ((parameters > 0).all() and (tokens > 0).all()):
        raise ValueError(f"`parameters` and `tokens` must be positive, got {parameters} and {tokens}.")
    of_size = (critical_parameters / parameters) ** (parameter_exponent / token_exponent)
    return (of_size + critical_tokens / tokens) ** token_exponent
