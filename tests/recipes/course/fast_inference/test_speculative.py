"""Speculative sampling, its statistics on stock `generate`, and the test of a sampled distribution."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.early_exit.self_speculation import SelfSpeculation
from hf_evidenceflow.recipes.course.fast_inference.acceptance import AcceptanceStatistics, generate_with_acceptance
from hf_evidenceflow.recipes.course.fast_inference.speculation import (
    compare_speculation,
    continuation_probabilities,
    count_continuations,
    fixed_drafts,
)
from hf_evidenceflow.recipes.course.fast_inference.speculative_sampling import (
    acceptance_probability,
    expected_tokens_per_pass,
    speculative_step,
)
from hf_evidenceflow.recipes.course.fast_inference.total_variation import total_variation, total_variation_test


P = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
Q = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]])


def draw_step(generator, draft_probs=Q, target_probs=P):
    drafts = torch.multinomial(draft_probs, 1, generator=generator)[:, 0]
    return speculative_step(drafts, draft_probs, target_probs, generator)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"eos_token_id": None, "initializer_range": 0.25}
    target = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3)).eval()
    draft = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1)).eval()
    return target, draft


# Sampling


def test_speculative_samples_are_distributed_as_the_targets():
    generator = torch.Generator().manual_seed(0)
    outputs = [draw_step(generator) for _ in range(5000)]
    first = np.bincount([int(output[0]) for output in outputs], minlength=4)
    # The second token exists where the first draft was kept; given the first token, it is distributed as p there too
    second = np.bincount([int(output[1]) for output in outputs if len(output) > 1], minlength=4)
    assert total_variation_test(first, P[0].numpy()).p_value > 0.01
    assert total_variation_test(second, P[1].numpy()).p_value > 0.01


def test_the_test_sees_a_refused_draft_replaced_from_p_instead_of_the_remainder():
    rng = np.random.default_rng(0)
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    drafts = rng.choice(4, size=5000, p=q)
    kept = rng.random(5000) * q[drafts] < p[drafts]
    wrong = np.where(kept, drafts, rng.choice(4, size=5000, p=p))
    assert total_variation_test(np.bincount(wrong, minlength=4), p).p_value < 0.001


def test_drafts_are_kept_as_often_as_the_distributions_overlap():
    generator = torch.Generator().manual_seed(1)
    kept = [len(draw_step(generator, Q[:1], P[:2])) == 2 for _ in range(5000)]
    overlap = acceptance_probability(Q[0], P[0]).item()
    assert overlap == pytest.approx(0.6) and overlap == pytest.approx(1 - total_variation(Q[0], P[0]))
    assert np.mean(kept) == pytest.approx(overlap, abs=4 * math.sqrt(0.24 / 5000))


def test_all_drafts_are_kept_when_the_models_agree():
    generator = torch.Generator().manual_seed(2)
    assert all(len(draw_step(generator, P[:2], P)) == 3 for _ in range(200))


def test_a_draft_that_the_target_excludes_is_never_kept():
    draft, target = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    generator = torch.Generator().manual_seed(3)
    assert all(speculative_step(torch.tensor([1]), draft, target, generator).tolist() == [0] for _ in range(50))


def test_expected_tokens_are_the_mean_over_all_numbers_of_kept_drafts():
    a, drafts = 0.7, 5
    expected = 0.0
    for outcome in itertools.product((True, False), repeat=drafts):
        kept = next((place for place, good in enumerate(outcome) if not good), drafts)
        expected += math.prod(a if good else 1 - a for good in outcome) * (kept + 1)
    assert expected_tokens_per_pass(a, drafts) == pytest.approx(expected, rel=1e-12)
    assert expected_tokens_per_pass(a, drafts) == pytest.approx((1 - a ** (drafts + 1)) / (1 - a), rel=1e-12)
    assert expected_tokens_per_pass(1.0, drafts) == 6


@pytest.mark.parametrize(("acceptance", "drafts"), [(1.2, 3), (-0.1, 3), (0.5, -1)])
def test_impossible_expectations_are_refused(acceptance, drafts):
    with pytest.raises(ValueError, match="must"):
        expected_tokens_per_pass(acceptance, drafts)


def test_rows_that_do_not_fit_the_drafts_are_refused():
    with pytest.raises(ValueError, match="2 drafts need 2 rows of `draft_probs` and 3 of `target_probs`, got 2 and 2"):
        speculative_step(torch.tensor([0, 1]), Q, P[:2])


# Stock generate


@pytest.mark.parametrize("way", ["draft", "lookup", "early exit"])
def test_greedy_decoding_with_drafts_gives_the_same_tokens(models, way):
    target, draft = models
    settings = {
        "draft": {"assistant_model": draft},
        "lookup": {"prompt_lookup_num_tokens": 3},
        "early exit": {"assistant_early_exit": 1},
    }[way]
    prompt = torch.tensor([[1, 2, 3, 1, 2]])
    plain = target.generate(prompt, max_new_tokens=23, do_sample=False)
    sequence, statistics = generate_with_acceptance(target, prompt, max_new_tokens=23, do_sample=False, **settings)
    assert torch.equal(sequence, plain)
    # Each pass of the target gives the drafts that it keeps and one token more
    assert statistics.accepted + len(statistics.passes) == 23
    assert all(0 <= accepted <= drafted for drafted, accepted in statistics.passes)


def test_a_draft_model_equal_to_the_target_is_always_right(models):
    target, _ = models
    twin = LlamaForCausalLM(target.config).eval()
    twin.load_state_dict(target.state_dict())
    _, statistics = generate_with_acceptance(
        target, torch.tensor([[1, 2, 3]]), max_new_tokens=20, do_sample=False, assistant_model=fixed_drafts(twin, 4)
    )
    assert statistics.passes == [(4, 4)] * 4
    assert statistics.rate == 1 and statistics.tokens_per_pass == 5


def test_the_rate_of_first_drafts_is_the_overlap_of_the_models(models):
    target, draft = models
    prompt = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        p, q = (model(prompt).logits[0, -1].softmax(-1) for model in (target, draft))
    torch.manual_seed(0)
    statistics = AcceptanceStatistics()
    for _ in range(150):
        generate_with_acceptance(
            target,
            prompt,
            statistics,
            assistant_model=fixed_drafts(draft, 1),
            do_sample=True,
            top_k=0,
            min_new_tokens=2,
            max_new_tokens=2,
        )
    overlap = acceptance_probability(q, p).item()
    assert 0.1 < overlap < 0.9
    assert statistics.rate_by_position()[0] == pytest.approx(overlap, abs=4 * math.sqrt(overlap * (1 - overlap) / 150))


def test_rates_by_position_count_only_drafts_that_could_be_reached():
    statistics = AcceptanceStatistics([(3, 3), (3, 1), (2, 0), (0, 0)])
    assert statistics.rate_by_position() == [2 / 3, 1 / 2, 1.0]
    assert statistics.rate == 4 / 8 and statistics.tokens_per_pass == 2


def test_no_drafts_have_no_rate():
    assert math.isnan(AcceptanceStatistics([(0, 0)]).rate)


def test_a_decoding_method_of_another_kind_is_refused(models):
    with pytest.raises(ValueError, match="`SelfSpeculation` counts its own"):
        generate_with_acceptance(models[0], torch.tensor([[1, 2]]), custom_generate=SelfSpeculation(models[0], 1))


def test_self_speculation_is_counted_by_itself(models):
    target, _ = models
    ways = {"plain": {}, "own": {"custom_generate": SelfSpeculation(target, 2, min_confidence=0.0)}}
    prompts = [torch.tensor([[1, 2, 3]]), torch.tensor([[5, 6]])]
    results = compare_speculation(target, prompts, ways, max_new_tokens=19, rounds=1)
    assert results["own"].identical == 2
    assert 0 <= results["own"].acceptance <= 1 <= results["own"].tokens_per_pass
    assert results["plain"].tokens_per_pass == 1 and math.isnan(results["plain"].acceptance)


def test_the_model_is_left_without_hooks(models):
    target, draft = models
    generate_with_acceptance(target, torch.tensor([[1, 2]]), max_new_tokens=2, assistant_model=draft)
    with pytest.raises(ValueError, match="takes one row, got 2"):
        generate_with_acceptance(target, torch.tensor([[1], [2]]), max_new_tokens=2, assistant_model=draft)
    assert not target._forward_pre_hooks


def test_stock_speculative_sampling_passes_and_the_draft_model_fails(models):
    target, draft = models
    prompt = torch.tensor([[1, 2, 3]])
    exact = continuation_probabilities(target, prompt).flatten()
    drafted = count_continuations(target, prompt, 150, assistant_model=fixed_drafts(draft, 2)).flatten()
    control = count_continuations(draft, prompt, 150).flatten()
    assert total_variation_test(drafted.numpy(), exact.numpy()).p_value > 0.01
    assert total_variation_test(control.numpy(), exact.numpy()).p_value < 0.001


def test_the_exact_distribution_of_two_tokens_is_that_of_all_continuations(models):
    target, _ = models
    exact = continuation_probabilities(target, torch.tensor([[4, 5]]))
    with torch.no_grad():
        logits = target(torch.tensor([[4, 5, 7]])).logits[0, 1:].double().softmax(-1)
    assert exact.shape == (13, 13)
    assert exact.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(exact[7], logits[0, 7] * logits[1], rtol=1e-4, atol=1e-9)


# The test itself


def test_p_values_of_exact_samples_are_uniform():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    values = [
        total_variation_test(rng.multinomial(300, probabilities), probabilities, resamples=200, seed=seed).p_value
        for seed in range(200)
    ]
    # 200 draws: the share below .2 has a standard deviation of .03, ties of the counts make it a little smaller
    assert 0.08 < np.mean(np.array(values) < 0.2) < 0.3


def test_rare_outcomes_are_counted_as_one():
    probabilities = np.concatenate([[0.4, 0.4], np.full(1000, 0.2 / 1000)])
    counts = np.zeros(1002, dtype=int)
    counts[[0, 1, 17]] = 45, 40, 15
    test = total_variation_test(counts, probabilities)
    assert test.distance == pytest.approx(0.05)
    assert tuple(test) == pytest.approx(total_variation_test(np.array([45, 40, 15]), np.array([0.4, 0.4, 0.2])))


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2,\) do not fit probabilities of shape \(3,\)"):
        total_variation_test(np.array([1, 2]), np.array([0.2, 0.3, 0.5]))
    with pytest.raises(ValueError, match="all counts are 0"):
        total_variation_test(np.array([0, 0]), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"must sum to 1, got 0\.7"):
        total_variation_test(np.array([1, 1]), np.array([0.5, 0.2]))
