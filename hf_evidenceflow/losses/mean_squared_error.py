"""Mean squared error of a layer's states to the target's embedding: the published Loss_p, and its scale-free form.

    Loss_p = sum_i mean((F_i - T)^2)

F_i [N, H] are the states after layer (or loop) i, T [N, H] the input-embedding rows of the right next tokens; the mean
goes over valid tokens and H. The functions give the term of one layer, the sum over layers is the caller's.

With N(0, 1) embeddings and LayerNormed states a term starts at 2.0, the sum of the two variances. With other scales it
falls when the states merely shrink: compare with the controls `zero` and `shuffled` before reading anything into it.
"""

import torch
import torch.nn.functional as F

from .tokens import at_least_float32, check_states_and_targets, mean_over_tokens


def mse(states: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor | None = None) -> torch.Tensor:
    """
    The published Loss_p term of one layer: `mean((F_i - T)^2)` over tokens and H.

    Gradients reach the targets too (the published, "live" form): detach them to move only the states.

    Example:

    ```python
    >>> index, labels = next_token_targets(batch["labels"])
    >>> mse(hidden_states.flatten(0, 1)[index], model.get_input_embeddings()(labels))
    ```
    """
    check_states_and_targets(states, targets)
    errors = at_least_float32(states) - at_least_float32(targets)  # [N, H]
    return mean_over_tokens(errors.square().mean(-1), normalizer)


def normalized_mse(
    states: torch.Tensor,
    targets: torch.Tensor,
    normalizer: float | torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """
    The Loss_p term with each state and each target brought to zero mean and unit variance over H first.

    It lies in [0, 4], equals `2 * (1 - correlation)` and starts near 2.0 at any scale, so that shrinking the states
    gains nothing. Gradients reach the targets too, as in [`mse`]. `eps` is added to the variances: small against the
    4e-4 of embeddings that were drawn with a deviation of 0.02.
    """
    check_states_and_targets(states, targets)
    states, targets = (
        F.layer_norm(at_least_float32(tensor), tensor.shape[-1:], eps=eps) for tensor in (states, targets)
    )
    return mse(states, targets, normalizer)
