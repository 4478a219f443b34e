"""The cross-layer rules: every variant against the reference, the ways to sum scores, what they keep in memory."""

import math

import pytest
import torch
from crosslayer_reference import reference_logits
from moved_crosslayer import moved_model
from tiny_models import TINY

from hf_evidenceflow.models.crosslayer import modeling_crosslayer, score_accumulation
from hf_evidenceflow.models.crosslayer.accumulation import combine_running, combine_terms, initial_weights
from hf_evidenceflow.models.crosslayer.configuration_crosslayer import VARIANTS, CrossLayerLlamaConfig
from hf_evidenceflow.models.crosslayer.modeling_crosslayer import CrossLayerLlamaForCausalLM
from hf_evidenceflow.models.crosslayer.score_accumulation import (
    ScaledSoftmax,
    concatenate_heads,
    raw_scores,
    score_path,
    sum_of_products,
)


# Compared with references of their own
CONNECTED = ("hyper_connections", "mhc", "block_attention", "block_attention_normed")
SCORES = [name for name in VARIANTS if name.startswith("v4")]
IDS = torch.randint(3, TINY["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(5))


def logits_and_gradients(model, forward):
    model.zero_grad()
    logits = forward()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)) / logits.numel() ** 0.5
    (logits * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def assert_equals_reference(model, variant):
    logits, gradients = logits_and_gradients(model, lambda: model(IDS, use_cache=False).logits)
    expected, expected_gradients = logits_and_gradients(model, lambda: reference_logits(model, IDS, variant))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in CONNECTED])
def test_logits_and_gradients_equal_the_reference(variant, implementation):
    assert_equals_reference(moved_model(variant, implementation), variant)


@pytest.mark.parametrize(
    ("variant", "path"),
    [(name, path) for name in SCORES for path in ("concatenate", "products")]
    + [(name, "running_sum") for name in SCORES[:4]],  # the others have several scales in a layer
)
def test_each_way_to_sum_scores_equals_the_reference(variant, path, monkeypatch):
    model = moved_model(variant)
    monkeypatch.setattr(modeling_crosslayer, "score_path", lambda *_: path)
    assert_equals_reference(model, variant)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "base"])
def test_variants_differ_from_llama(variant):
    # Otherwise a rule that was never applied would pass the other tests
    model = moved_model(variant)
    assert (model(IDS).logits - reference_logits(model, IDS, "base")).abs().max() > 0.01


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_future_tokens_do_not_change_past_logits(variant, implementation):
    model = moved_model(variant, implementation)
    other = IDS.clone()
    other[:, 6:] = (other[:, 6:] + 11) % 90 + 3
    with torch.no_grad():
        torch.testing.assert_close(model(other).logits[:, :6], model(IDS).logits[:, :6], rtol=0, atol=1e-6)


def matrices_saved_for_backward(model):
    storages = set()

    def pack(tensor):
        if tensor.numel() == 2 * 4 * 11 * 11:
            storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(IDS, labels=IDS, use_cache=False).loss
    assert loss.requires_grad
    return len(storages)


@pytest.mark.parametrize(
    ("variant", "path"), [("v4m1", "running_sum"), ("v4m4", "running_sum"), ("v4m4", "products"), ("v4m5", "products")]
)
def test_training_keeps_one_matrix_of_probabilities_a_layer(variant, path, monkeypatch):
    model = moved_model(variant).train()
    monkeypatch.setattr(modeling_crosslayer, "score_path", lambda *_: path)
    assert matrices_saved_for_backward(model) == TINY["num_hidden_layers"]


@pytest.mark.parametrize(("variant", "implementation"), [("v4m1", "sdpa"), ("v4m4", "eager"), ("v4m6", "sdpa")])
def test_matrices_handed_from_layer_to_layer_do_not_grow_with_depth(variant, implementation):
    model = moved_model(variant, implementation)
    held = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args: held.append(sum(tensor.shape[-2:] == (11, 11) for tensor in args[1:]))
        )
    with torch.no_grad():
        model(IDS)
    assert held == ([0, 1, 1] if model.config.scale_per_layer else [0, 0, 0])


def test_softmax_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(4, 5, dtype=torch.bool).tril(1)
    assert torch.autograd.gradcheck(lambda s, c: ScaledSoftmax.apply(s, c, mask, torch.float64), (scores, scale))


def test_scores_near_the_end_of_the_range_stay_finite_under_the_mask():
    scores = torch.full((1, 1, 3, 3), -1e38)
    additive = torch.full((3, 3), torch.finfo(torch.float32).min).triu(1)
    probabilities = ScaledSoftmax.apply(scores, 1.0, additive, torch.float32)
    torch.testing.assert_close(probabilities[0, 0], torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None])


def test_concatenated_heads_give_the_sum_of_products():
    generator = torch.Generator().manual_seed(1)
    queries = [torch.randn(2, 6, 3, 5, generator=generator) for _ in range(3)]
    keys = [torch.randn(2, 2, 7, 5, generator=generator) for _ in range(3)]
    scales = torch.tensor([0.2, -1.0, 3.0])
    expected = sum(s * q @ k.repeat_interleave(3, 1).mT for s, q, k in zip(scales, queries, keys))
    torch.testing.assert_close(sum_of_products(queries, keys, scales), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw_scores(*concatenate_heads(queries, keys, scales)), expected, rtol=1e-5, atol=1e-5)


def test_a_running_sum_combines_as_the_list_of_terms():
    terms = [torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    for combination in ("sum", "mean"):
        torch.testing.assert_close(combine_running(sum(terms), 5, combination), combine_terms(terms, combination))


def test_identity_weights_leave_the_share_of_earlier_terms_at_a_thousandth():
    shares = initial_weights("softmax", 7, identity=True).softmax(0)
    assert shares[:-1].sum().item() == pytest.approx(1e-3, rel=1e-3)
    assert initial_weights("linear", 3, identity=True).tolist() == [0, 0, 1]
    assert initial_weights("linear", 4, identity=False).tolist() == [0.25] * 4


def test_learned_scales_start_at_one_over_root_d():
    for variant, expected in {
        "v4m1": 6**-0.5,
        "v4m2": (6 * 3) ** -0.5,
        "v4m3": 6**-0.5 / 3,
        "v4m4": 6**-0.5 / 3,
        "v4m5": 6**-0.5,
        "v4m6": 6**-0.5,
        "v4m7": 6**-0.5,
    }.items():
        model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant=variant))
        scales = torch.as_tensor(model.model.layers[2].self_attn.scales()).detach()
        torch.testing.assert_close(scales, torch.full_like(scales, expected), rtol=1e-5, atol=0)


def test_init_of_a_free_scale_is_log_root_d():
    model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v4m7"))
    weights = model.model.layers[2].self_attn.score_log_a.detach()
    torch.testing.assert_close(weights, torch.full((3,), math.log(math.sqrt(6))))


def test_long_passes_hold_no_matrix_of_scores():
    assert score_path("sdpa", True, 2048) == "running_sum"
    assert score_path("sdpa", True, 2049) == "concatenate"
    assert score_path("sdpa", False, 8) == "concatenate"


def test_checkpointed_layers_hand_on_no_matrix_of_scores():
    assert score_path("eager", True, 8, is_checkpointed=True) == "products"
    assert score_path("sdpa", True, 8, is_checkpointed=True) == "concatenate"


def test_a_checkpointed_model_takes_the_way_of_checkpointed_layers(monkeypatch):
    model, seen = moved_model("v4m1").train(), []
    monkeypatch.setattr(modeling_crosslayer, "score_path", lambda *given: seen.append(given[3]) or "concatenate")
    model(IDS)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(IDS)
    model.eval()(IDS)
    assert seen == [False, True, False]


@pytest.mark.parametrize("path", ["running_sum", "concatenate", "products"])
def test_attention_dropout_acts_in_training_only(path, monkeypatch):
    monkeypatch.setattr(modeling_crosslayer, "score_path", lambda *_: path)
    plain, dropping = moved_model("v4m4"), moved_model("v4m4", attention_dropout=0.5)
    assert torch.equal(dropping(IDS).logits, plain(IDS).logits)
    assert (dropping.train()(IDS).logits - plain.train()(IDS).logits).abs().max() > 0.01


def test_implementations_that_cannot_sum_scores_are_refused():
    with pytest.raises(ValueError, match="flash_attention_2"):
        score_path("flash_attention_2", True, 8)


def test_widened_values_change_neither_logits_nor_gradients(monkeypatch):
    monkeypatch.setattr(modeling_crosslayer, "score_path", lambda *given: "concatenate")
    results = []
    for positions in (1 << 20, 1):
        monkeypatch.setattr(score_accumulation, "WIDENING_POSITIONS", positions)
        torch.manual_seed(2)
        model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v4m6"))
        output = model(IDS, labels=IDS, use_cache=False)
        output.loss.backward()
        results.append([output.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, widened in zip(*results, strict=True):
        torch.testing.assert_close(widened, plain, rtol=1e-4, atol=1e-6)


def test_values_are_widened_from_256_positions_a_term_on_a_cpu():
    cpu = torch.device("cpu")
    assert score_accumulation.widens_values(1024, 4, cpu) and not score_accumulation.widens_values(1023, 4, cpu)
    assert not score_accumulation.widens_values(1024, 1, cpu)
    assert not score_accumulation.widens_values(1024, 4, torch.device("cuda"))
