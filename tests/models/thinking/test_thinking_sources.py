"""Formulas of the states, and that what is computed from weights follows the weights."""

import pytest
import torch
from naive_methods import make_method
from thinking_models import think

from hf_evidenceflow.models.thinking.thinking_methods import changed_method
from hf_evidenceflow.models.thinking.thinking_sources import StateSource, aligned_state, alignment


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_alignment_is_the_ridge_solution():
    """Its gradient is 0: `U' (U W - E) + ridge W`."""
    head, embedding = normal(50, 7), normal(50, 7, seed=1)
    matrix = alignment(head, embedding)
    ridge = 1e-4 * head.square().sum() / 7
    gradient = head.T @ (head @ matrix - embedding) + ridge * matrix
    assert gradient.abs().max() < 1e-3
    assert (head.T @ (head @ torch.eye(7) - embedding)).abs().max() > 1


def test_the_alignment_of_tied_weights_is_the_identity():
    weights = normal(50, 7)
    torch.testing.assert_close(alignment(weights, weights), torch.eye(7), rtol=0, atol=1e-3)


def test_an_aligned_state_has_the_norm_of_embeddings():
    states = aligned_state(100 * normal(3, 7), normal(7, 7, seed=1), torch.tensor(0.3))
    torch.testing.assert_close(states.norm(dim=-1), torch.full((3,), 0.3))


def test_rows_that_one_of_the_two_matrices_lacks_are_left_out():
    head, embedding = normal(50, 7), normal(53, 7, seed=1)
    torch.testing.assert_close(alignment(head, embedding), alignment(head, embedding[:50]))


def test_the_alignment_is_computed_once_and_again_when_the_weights_have_changed():
    model = make_method("later")
    first = model.thinking_source().aligned[0]
    assert model.thinking_source().aligned[0] is first
    model.lm_head.weight.data[:, 0] += 1  # as fused optimizers do: the tensor does not count it
    assert not torch.equal(model.thinking_source().aligned[0], first)


def test_what_was_computed_in_inference_mode_can_be_trained_with():
    model = make_method("later")
    with torch.inference_mode():
        think(model)
    hidden = normal(2, 24).double().requires_grad_()
    model.thinking_source()(None, hidden).square().sum().backward()
    assert hidden.grad.any()


@pytest.mark.parametrize("source", ["mean_embedding", "unit_mean_embedding", "aligned", "fusion"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_are_those_of_finite_differences(source, top_k):
    embedding, matrix = normal(11, 5).double(), normal(5, 5, seed=1).double()
    method = changed_method("soft", source=source)
    states = StateSource(method, embedding, (matrix, torch.tensor(2.0)), top_k, temperature=0.7)
    arguments = normal(2, 11, seed=2).double().requires_grad_(), normal(2, 5, seed=3).double().requires_grad_()
    assert torch.autograd.gradcheck(states, arguments)


def test_all_tokens_one_by_one_are_the_whole_average():
    embedding, scores = normal(11, 5), normal(2, 11, seed=2)
    for name in ("soft", "embedding"):
        some, everything = (StateSource(changed_method(name), embedding, top_k=k)(scores, None) for k in (11, None))
        torch.testing.assert_close(some, everything)
