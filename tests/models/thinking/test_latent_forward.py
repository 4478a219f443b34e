"""The pass of a model that thinks by itself: values and gradients against loops that say what it means."""

import copy
from functools import partial

import pytest
import torch
from latent_models import FAMILIES, FILLER, MODES, ROWS, latent_batch, make_latent_model, naive_row, spread

from hf_evidenceflow.models.thinking.intervention import ThinkingIntervention
from hf_evidenceflow.models.thinking.latent_forward import LatentOptions, latent_columns
from hf_evidenceflow.models.thinking.thinking_methods import THINKING_METHODS
from hf_evidenceflow.models.thinking.thinking_residual import embedding_state, soft_state, thinking_modules_in_use
from hf_evidenceflow.models.thinking.thinking_sources import average_embeddings


EXACT = {"atol": 1e-9, "rtol": 1e-9}  # fp64
FUSING = tuple(mode for mode in MODES if mode not in ("pause", "none"))
THREE = latent_batch([([5, 9, 7], 3, [11, 1]), ([4, 7], 3, [21, 22, 1])])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert expected.keys() <= found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-8, rtol=1e-6, msg=partial(_named, name))


def _named(name, text):
    return f"{name}: {text}"


def given_states(model, batch, output):
    """Arguments of a plain pass over the states and tokens that a latent one has recorded."""
    start, stop = latent_columns(batch["latent_mask"])
    ids = batch["input_ids"].clone()
    ids[:, start:stop] = output.tokens
    rest = ids.shape[1] - stop
    return {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"],
        "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0),
        "thinking_mask": batch["latent_mask"][:, start:],
        "thinking_states": None if output.states is None else torch.nn.functional.pad(output.states, (0, 0, 0, rest)),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_a_mixed_batch_are_those_of_a_naive_loop(mode, family):
    model, batch = make_latent_model(mode, family), latent_batch()
    output = model(**batch)
    start, stop = latent_columns(batch["latent_mask"])
    for index, row in enumerate(ROWS):
        logits, states = naive_row(model, *row)
        found = output.logits[index][batch["attention_mask"][index].bool()]
        torch.testing.assert_close(found, logits, **EXACT)
        if mode in FUSING and states:
            found = output.states[index][batch["latent_mask"][index, start:stop]]
            torch.testing.assert_close(found, torch.stack(states), **EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_those_of_a_naive_loop(mode):
    """Through states and cache, at every parameter."""
    model = make_latent_model(mode)
    expected = gradients(model, spread(torch.cat([naive_row(model, *row)[0] for row in ROWS])))
    batch = latent_batch()
    found = gradients(model, spread(model(**batch).logits[batch["attention_mask"].bool()]))
    assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_the_parallel_pass_over_recorded_states_has_the_same_logits(mode, family):
    """In fp32 and, where the mode draws tokens, with the tokens that were drawn."""
    model = make_latent_model(mode, family).float()
    if model.config.token_policy == "argmax":
        model.config.thinking_token_policy = "sample"
    batch = latent_batch()
    with torch.no_grad():
        output = model(**batch)
        expected = model(**given_states(model, batch, output)).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(output.logits[real], expected[real], atol=1e-5, rtol=1e-5)


def test_tokens_are_drawn_where_they_matter():
    model, batch = make_latent_model("embedding", thinking_token_policy="sample"), latent_batch()
    drawn = {tuple(model(**batch).tokens[0].tolist()) for _ in range(5)}
    assert len(drawn) > 1
    model.config.thinking_token_policy = "argmax"
    output = model(**batch)
    start, stop = latent_columns(batch["latent_mask"])
    mask = batch["latent_mask"][:, start:stop]
    assert torch.equal(output.tokens[mask], output.logits[:, start - 1 : stop - 1].argmax(-1)[mask])
    assert torch.equal(output.tokens[~mask], batch["input_ids"][:, start:stop][~mask])


@pytest.mark.parametrize("mode", ["coconut", "codi", "soft"])
def test_tokens_that_do_not_matter_stay(mode):
    assert set(make_latent_model(mode)(**THREE).tokens.flatten().tolist()) == {FILLER}


@pytest.mark.parametrize(
    "mode, where",
    [
        (mode, f"{module}.weight")
        for mode in FUSING
        for module in ("embed_tokens", "thinking_projection", "thinking_residual_gate_i")
        if module in ("embed_tokens", *thinking_modules_in_use(THINKING_METHODS[mode]))
    ],
)
def test_finite_differences_through_two_states(mode, where):
    model = make_latent_model(mode)
    name, weight = next((name, p) for name, p in model.named_parameters() if name.endswith(where))
    batch = latent_batch([([5, 9], 2, [11]), ([4, 7, 3], 2, [21])])

    def loss():  # of the text alone: what the states have done
        return spread(model(**batch).logits[:, -2:])

    found = gradients(model, loss())[name]
    at, step = (5, 3), 1e-6
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[at] += sign * step
            values.append(loss())
            weight[at] -= sign * step
    difference = (values[0] - values[1]) / (2 * step)
    assert abs(difference) > 1e-6
    torch.testing.assert_close(found[at], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["soft", "embedding", "none"])
def test_target_states_of_the_own_distribution_are_the_own_states(mode):
    model, batch = make_latent_model(mode), latent_batch()
    own = model(**batch)
    start, stop = latent_columns(batch["latent_mask"])
    mask = batch["latent_mask"][:, start:stop]
    weights = own.logits[:, start - 1 : stop - 1].detach().softmax(-1)
    ids = torch.arange(weights.shape[-1]).expand_as(weights)
    taught = model(**batch, latent_targets=(ids, weights * mask[..., None]))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(taught.logits[real], own.logits[real], **EXACT)
    assert torch.equal(taught.tokens[mask], own.tokens[mask])
    if mode != "none":
        torch.testing.assert_close(taught.states[mask], own.states[mask], **EXACT)


def test_target_states_are_the_formulas_of_decoding():
    torch.manual_seed(0)
    embedding, probs = torch.randn(7, 3), torch.rand(2, 5).softmax(-1)
    ids = torch.tensor([[6, 0, 3, 2, 4], [1, 2, 3, 5, 0]])
    whole = torch.zeros(2, 7).scatter(1, ids, probs)
    for unit, expected in ((True, embedding_state(whole, embedding)), (False, soft_state(whole, embedding))):
        found = average_embeddings(ids[:, None], probs[:, None], embedding, unit)[:, 0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", FUSING)
def test_a_gradient_through_one_thought_is_that_of_a_detached_past(mode):
    model = make_latent_model(mode)
    with torch.no_grad():
        kwargs = given_states(model, THREE, model(**THREE))
    start, stop = latent_columns(THREE["latent_mask"])
    tail = {name: value[:, stop - 1 :] for name, value in kwargs.items() if name in ("input_ids", "position_ids")}
    at = stop - 1 - start
    with torch.no_grad():
        head = {name: kwargs[name][:, : stop - 1] for name in ("input_ids", "attention_mask", "position_ids")}
        states, mask = kwargs["thinking_states"], kwargs["thinking_mask"]
        cache = model.model(
            **head, thinking_states=states[:, :at], thinking_mask=mask[:, :at], use_cache=True
        ).past_key_values
    hidden = model.model(
        **tail,
        attention_mask=kwargs["attention_mask"],
        past_key_values=cache,
        thinking_states=states[:, at:],
        thinking_mask=mask[:, at:],
    ).last_hidden_state
    expected = gradients(model, spread(model.lm_head(hidden)))
    output = model(**THREE, latent_options=LatentOptions(backprop=1))
    found = gradients(model, spread(output.logits[:, stop - 1 :]))
    assert_close(found, expected)


def test_a_cut_gradient_differs_and_one_as_long_as_the_thoughts_does_not():
    model, name = make_latent_model("coconut"), "model.layers.1.mlp.up_proj.weight"

    def gradient(k):
        return gradients(model, spread(model(**THREE, latent_options=LatentOptions(k)).logits[:, -2:]))[name]

    whole = gradient(None)
    torch.testing.assert_close(gradient(3), whole, **EXACT)
    assert not torch.allclose(gradient(1), whole) and not torch.allclose(gradient(1), gradient(2))


@pytest.mark.parametrize("mode", ["soft", "coconut", "codi", "projection", "embedding", "none"])
def test_jacobi_with_as_many_iterations_as_thoughts_is_exact(mode):
    model, batch = make_latent_model(mode), latent_batch()
    real = batch["attention_mask"].bool()
    one_by_one = model(**batch)
    expected = gradients(model, spread(one_by_one.logits[real]))
    at_once = model(**batch, latent_options=LatentOptions(iterations=3))
    found = gradients(model, spread(at_once.logits[real]))
    torch.testing.assert_close(at_once.logits[real], one_by_one.logits[real], **EXACT)
    assert_close(found, expected)
    fewer = model(**batch, latent_options=LatentOptions(iterations=1)).logits[real]
    assert not torch.allclose(fewer, one_by_one.logits[real], atol=1e-3)


@pytest.mark.parametrize("mode", ["soft", "pause", "none"])
def test_kept_logits_are_the_last_ones(mode):
    model = make_latent_model(mode)
    assert torch.equal(model(**THREE, logits_to_keep=3).logits, model(**THREE).logits[:, -3:])


@pytest.mark.parametrize("mode", ["soft", "coconut", "pause"])
def test_hidden_states_of_all_layers_are_those_of_the_parallel_pass(mode):
    model, batch = make_latent_model(mode), latent_batch()
    output = model(**batch, output_hidden_states=True)
    expected = model(**given_states(model, batch, output), output_hidden_states=True).hidden_states
    assert len(output.hidden_states) == len(expected)
    real = batch["attention_mask"].bool()
    for found, layer in zip(output.hidden_states, expected):
        torch.testing.assert_close(found[real], layer[real], **EXACT)


# What is refused


def refused(match, mode="soft", batch=THREE, model=None, **kwargs):
    model = make_latent_model(mode) if model is None else model
    with pytest.raises(ValueError, match=match):
        model(**batch, **kwargs)


def test_a_mask_without_thoughts_is_refused():
    refused("no latent position", batch=THREE | {"latent_mask": torch.zeros_like(THREE["latent_mask"])})


def test_a_thought_behind_padding_is_refused():
    first = THREE["attention_mask"].clone()
    first[1, :4] = 0
    first[1, :2] = 0
    mask = THREE["latent_mask"] | (torch.arange(first.shape[1]) == 2)
    refused("a token before its first latent position", batch=THREE | {"attention_mask": first, "latent_mask": mask})


def test_gradient_checkpointing_is_refused():
    model = make_latent_model("soft").train()
    model.gradient_checkpointing_enable()
    refused("gradient_checkpointing=False", model=model)


def test_an_intervention_is_refused():
    with ThinkingIntervention("zero"):
        refused("Call it outside of the block")


@pytest.mark.parametrize("mode", ["projection", "coconut", "codi"])
def test_targets_are_refused_where_they_give_no_state(mode):
    targets = torch.ones(2, 3, 1, dtype=torch.long), torch.ones(2, 3, 1)
    refused("`soft` and `embedding`", mode, latent_targets=targets)


def test_jacobi_is_refused_with_random_tokens():
    model = make_latent_model("embedding", thinking_token_policy="sample")
    refused("thinking_token_policy='argmax'", model=model, latent_options=LatentOptions(iterations=2))


@pytest.mark.parametrize("settings", [{"backprop": 0}, {"iterations": -1}])
def test_options_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1 or None"):
        LatentOptions(**settings)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="backprop.*iterations"):
        LatentOptions(backprop=1, iterations=2)


def test_a_mode_changed_to_a_counted_one_without_a_count_is_refused():
    model = make_latent_model("soft")
    model.config = copy.deepcopy(model.config)
    model.config.thinking_mode, model.config.thinking_count = "coconut", None
    refused("thinking_count", model=model)


def test_the_head_reads_columns_that_lie_together():
    """A frozen head would be copied for each row otherwise."""
    model, seen = make_latent_model("soft"), []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**THREE, logits_to_keep=4)
    assert seen[-1].dim() == 3 and seen[-1].shape[1] == 4 and seen[-1].is_contiguous()
