"""GloVe: word vectors whose products are the logarithms of co-occurrence counts, by weighted least squares.

    J = sum over X_ij > 0 of f(X_ij) (w_i . w~_j + b_i + b~_j - log X_ij)^2,   f(x) = min(1, (x / x_max)^alpha)

The weight f keeps rare, noisy pairs from counting in full, and frequent ones from counting for everything. Both sets
of vectors are learnt by AdaGrad, and a word's vector is their sum.

Source: Pennington, Socher and Manning 2014, equations 8 and 9 and section 4.2 (alpha 3/4, learning rate 0.05, w + w~).
Here a step takes a batch of pairs and not one, which sums their gradients. As in the authors' code the squares of
AdaGrad start at 1, and vectors evenly in [-0.5, 0.5) / H.

Shapes: V words, H numbers in a vector, N pairs of a batch.
"""

from typing import NamedTuple

import torch
from scipy.sparse import coo_array


class GloveParameters(NamedTuple):
    """
    What GloVe learns.

    Args:
        words, contexts (`torch.Tensor` of shape `(V, H)`):
            Vectors w and w~.
        word_bias, context_bias (`torch.Tensor` of shape `(V,)`):
            Biases b and b~.
    """

    words: torch.Tensor
    contexts: torch.Tensor
    word_bias: torch.Tensor
    context_bias: torch.Tensor


def glove_weight(counts: torch.Tensor, x_max: float, alpha: float = 0.75) -> torch.Tensor:
    """
    The weight f of a pair (equation 9).

    Args:
        counts (`torch.Tensor`):
            Counts X.
        x_max (`float`):
            Count from which a pair has the weight 1.
        alpha (`float`, *optional*, defaults to `0.75`):
            Power below it.

    Returns:
        `torch.Tensor` of the same shape: weights in [0, 1].
    """
    return (counts / x_max).pow(alpha).clamp(max=1.0)


def glove_loss(
    parameters: GloveParameters,
    rows: torch.Tensor,
    columns: torch.Tensor,
    counts: torch.Tensor,
    x_max: float,
    alpha: float = 0.75,
) -> torch.Tensor:
    """
    The summed loss of some pairs (equation 8).

    Args:
        parameters ([`GloveParameters`]):
            Vectors and biases.
        rows, columns (`torch.Tensor` of shape `(N,)`):
            Indices of the words i and their contexts j.
        counts (`torch.Tensor` of shape `(N,)`):
            Their counts, above 0.
        x_max (`float`):
            Count from which a pair has the weight 1.
        alpha (`float`, *optional*, defaults to `0.75`):
            Power below it.
    """
    word, context = parameters.words[rows], parameters.contexts[columns]  # [N, H]
    error = (word * context).sum(1) + parameters.word_bias[rows] + parameters.context_bias[columns] - counts.log()
    return (glove_weight(counts, x_max, alpha) * error.square()).sum()


def train_glove(
    counts,
    vector_size: int,
    epochs: int,
    x_max: float,
    alpha: float = 0.75,
    learning_rate: float = 0.05,
    batch_size: int = 1024,
    seed: int = 0,
) -> tuple[GloveParameters, list[float]]:
    """
    Learn vectors from co-occurrence counts.

    Args:
        counts (sparse array of shape `(V, V)`):
            Counts, such as those of [`~recipes.course.word_vectors.cooccurrence.count_cooccurrences`].
        vector_size (`int`):
            Numbers H in a vector.
        epochs (`int`):
            Passes over the pairs, each in a new order.
        x_max (`float`):
            Count from which a pair has the weight 1, above 0.
        alpha (`float`, *optional*, defaults to `0.75`):
            Power below it.
        learning_rate (`float`, *optional*, defaults to `0.05`):
            Rate of AdaGrad.
        batch_size (`int`, *optional*, defaults to `1024`):
            Pairs of a step.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the vectors and the order.

    Returns:
        `tuple[GloveParameters, list[float]]`: what was learnt, and the mean loss of a pair in each epoch.

    Raises:
        `ValueError`: if there is no pair, or `x_max` is not positive.
    """
    if x_max <= 0:
        raise ValueError(f"`x_max` must be above 0, got {x_max}.")
    table = coo_array(counts)
    rows, columns = (torch.from_numpy(index).long() for index in table.coords)
    values = torch.from_numpy(table.data).float()
    if len(values) == 0:
        raise ValueError("The table of counts has no pair. Give more text, or a smaller `min_count`.")
    generator = torch.Generator().manual_seed(seed)
    size = table.shape[0]
    shapes = GloveParameters((size, vector_size), (size, vector_size), (size,), (size,))
    parameters = GloveParameters(*((torch.rand(shape, generator=generator) - 0.5) / vector_size for shape in shapes))
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adagrad(parameters, lr=learning_rate, initial_accumulator_value=1.0)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(values), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss = glove_loss(parameters, rows[batch], columns[batch], values[batch], x_max, alpha)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(values))
    return GloveParameters(*(parameter.detach() for parameter in parameters)), losses


def glove_vectors(parameters: GloveParameters) -> torch.Tensor:
    """
    The vector of each word: the sum of its two.

    Args:
        parameters ([`GloveParameters`]):
            What was learnt.

    Returns:
        `torch.Tensor` of shape `(V, H)`: w + w~.
    """
    return parameters.words + parameters.contexts
