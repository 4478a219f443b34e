"""The term that `evidence_flow` adds to a model's loss, in plain loops."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_families import CONFIGS, tiny_causal_lm, token_ids
from torch import nn

from hf_evidenceflow import EvidenceFlowConfig, decoder_parts, evidence_flow, record_layer_states
from hf_evidenceflow.losses import OBJECTIVES, mse, register_objective


STATE = ("mse", "normalized_mse", "cosine", "zero", "shuffled")


def batch(rows=2, length=11):
    ids = token_ids(rows, length)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def run(model, inputs, config=None, **overrides):
    """Loss and gradients of one batch."""
    model.train()
    model.zero_grad()
    with evidence_flow(model, config, **overrides) as flow:
        loss = model(**inputs).loss
        loss.backward()
    return loss.detach(), gradients(model), flow


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first:
        gap = (first[name] - second[name]).abs().max().item()
        scale = second[name].abs().max().item()
        assert gap <= tolerance * max(scale, 1.0), f"{name}: absolute {gap:.3g}, of {scale:.3g}"


def plain_mse(model, inputs):
    """Loss_p written out: sum over layers of the mean over valid tokens and features."""
    with record_layer_states(decoder_parts(model)) as states:
        loss = model(**inputs).loss
    labels, mask = inputs["labels"][:, 1:], inputs["attention_mask"]
    valid = (labels != -100) & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    target = model.get_input_embeddings()(labels.clamp(min=0))
    term = sum(((state[:, :-1] - target) ** 2)[valid].mean() for state in states)
    return loss, term


@pytest.mark.parametrize("family", CONFIGS)
def test_it_adds_the_published_loss(family):
    model, inputs = tiny_causal_lm(family).train(), batch()
    loss, term = plain_mse(model, inputs)
    (loss + 0.7 * term).backward()
    expected = gradients(model)
    added, actual, _ = run(model, inputs, weight=0.7)
    torch.testing.assert_close(added, (loss + 0.7 * term).detach(), rtol=1e-6, atol=1e-6)
    assert_close(actual, expected, 1e-5)
    assert term.item() > 1e-3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_moves_loss_and_gradients(objective):
    model, inputs = tiny_causal_lm("llama"), batch()
    plain, plain_gradients, _ = run(model, inputs, weight=0.0)
    loss, actual, flow = run(model, inputs, objective=objective)
    terms = flow.log.pop()
    assert loss.item() == pytest.approx(plain.item() + terms["evidence_flow/loss"], rel=1e-5)
    assert terms["evidence_flow/model_loss"] == pytest.approx(plain.item(), rel=1e-6)
    assert any(not torch.equal(actual[name], plain_gradients[name]) for name in actual)


@pytest.mark.parametrize("family", CONFIGS)
def test_cross_entropy_is_the_heads_own_on_each_layer_but_the_last(family):
    model, inputs = tiny_causal_lm(family).train(), batch()
    parts = decoder_parts(model)
    with record_layer_states(parts) as states:
        loss = model(**inputs).loss
    labels = inputs["labels"][:, 1:].flatten()
    for state in states[:-1]:
        loss = loss + 0.3 * F.cross_entropy(parts.readout(state)[:, :-1].flatten(0, 1), labels, ignore_index=-100)
    model.zero_grad()
    loss.backward()
    expected = gradients(model)
    added, actual, _ = run(model, inputs, objective="cross_entropy", weight=0.3, token_fraction=1.0, chunk_size=3)
    torch.testing.assert_close(added, loss.detach(), rtol=1e-6, atol=1e-6)
    assert_close(actual, expected, 1e-5)


def test_a_share_of_the_tokens_is_right_on_average():
    model, inputs = tiny_causal_lm("llama"), batch(4)
    full = run(model, inputs, objective="cross_entropy", token_fraction=1.0)[2].log.pop()
    with evidence_flow(model, objective="cross_entropy", token_fraction=0.25) as flow:
        for _ in range(400):
            model(**inputs)
            flow.next_step()
    mean = flow.log.pop()
    for layer in ("layer_0", "layer_1"):
        # The standard error of 400 draws is about a hundredth
        assert mean[f"evidence_flow/{layer}"] == pytest.approx(full[f"evidence_flow/{layer}"], rel=0.03)


@pytest.mark.parametrize("token_fraction", [0.3, 1.0])
def test_a_share_of_the_tokens_keeps_the_normalizer_of_the_batch(token_fraction):
    model, inputs = tiny_causal_lm("llama"), batch(4)
    settings = {"objective": "zero", "token_fraction": token_fraction}
    mean = run(model, inputs, **settings)[0] - run(model, inputs, weight=0.0)[0]
    inputs["num_items_in_batch"] = torch.tensor(100)
    scaled = run(model, inputs, **settings)[0] - run(model, inputs, weight=0.0)[0]
    count = ((inputs["labels"] != -100)[:, 1:]).sum()
    torch.testing.assert_close(scaled * 100 / count, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [*STATE, "cross_entropy", "lens_kl", "nitp"])
def test_uneven_micro_batches_add_up_to_the_full_batch(objective):
    # The random target of `shuffled` depends on which tokens there are
    if objective == "shuffled":
        objective = "mse"
    model = tiny_causal_lm("llama").double()
    inputs = batch(5)
    inputs["labels"][2, 2:] = -100
    inputs["labels"][4, 3:] = -100
    total = (inputs["labels"][:, 1:] != -100).sum()
    settings = {"objective": objective, "token_fraction": 1.0}
    _, expected, _ = run(model, {**inputs, "num_items_in_batch": total}, **settings)
    model.zero_grad()
    with evidence_flow(model, **settings):
        for rows in ([0, 1], [2], [3, 4]):
            part = {name: value[rows] for name, value in inputs.items()}
            model(**part, num_items_in_batch=total).loss.backward()
    assert_close(gradients(model), expected, 1e-6)


@pytest.mark.parametrize("objective", ["mse", "cross_entropy", "cosine"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(objective, reentrant):
    model, inputs = tiny_causal_lm("llama"), batch()
    settings = {"objective": objective, "apply_final_norm": True}
    loss, expected, _ = run(model, inputs, **settings)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    checkpointed, actual, _ = run(model, inputs, **settings)
    torch.testing.assert_close(checkpointed, loss, rtol=1e-6, atol=1e-6)
    assert_close(actual, expected, 1e-5)


def test_packed_sequences_are_supervised_as_single_ones():
    model = tiny_causal_lm("llama")
    first, second = token_ids(1, 5, seed=3), token_ids(1, 8, seed=4)
    terms = []
    for ids in (first, second):
        terms.append(run(model, {"input_ids": ids, "labels": ids})[2].log.pop()["evidence_flow/loss"])
    packed = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(5), torch.arange(8)])[None]
    inputs = {"input_ids": packed, "labels": packed, "position_ids": positions, "use_cache": False}
    both = run(model, inputs)[2].log.pop()["evidence_flow/loss"]
    assert both == pytest.approx((4 * terms[0] + 7 * terms[1]) / 11, rel=1e-5)


def test_adapters_are_supervised_through_the_outermost_module():
    inputs = batch()
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm("llama"), LoraConfig(target_modules=["q_proj", "v_proj"]))
    _, term = plain_mse(model, inputs)
    plain = run(model, inputs, weight=0.0)[0]
    loss, actual, _ = run(model, inputs)
    assert loss.item() == pytest.approx((plain + term).item(), rel=1e-6)
    assert actual and all("lora" in name for name in actual)


def test_virtual_tokens_of_prompt_tuning_are_not_supervised():
    torch.manual_seed(0)
    model = get_peft_model(tiny_causal_lm("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    inputs = batch()
    terms = run(model, inputs, objective="zero")[2].log.pop()
    with torch.no_grad(), record_layer_states(decoder_parts(model)) as states:
        model(**inputs)
    labels, mask = inputs["labels"][:, 1:], inputs["attention_mask"]
    valid = (labels != -100) & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    assert states[0].shape[1] == 15
    expected = sum((state[:, 4:][:, :-1] ** 2)[valid].mean().item() for state in states)
    assert terms["evidence_flow/loss"] == pytest.approx(expected, rel=1e-5)


def test_layer_skip_is_the_weighted_mean_of_all_layers_losses():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    settings = {"objective": "cross_entropy", "token_fraction": 1.0}
    _, _, flow = run(model, inputs, **settings)
    terms = flow.log.pop()
    own, early = terms["evidence_flow/model_loss"], terms["evidence_flow/layer_1"]
    loss, _, flow = run(model, inputs, **settings, layer_weights="layer_skip", weight=0.5)
    # Scales 0.5 * 1 of layer 1, 2 + 0.5 * 1 of the last; layer 0 has none
    assert loss.item() == pytest.approx((0.5 * early + 2.5 * own) / 3, rel=1e-5)
    assert "evidence_flow/layer_0" not in flow.log.pop()


def test_a_step_in_which_no_layer_is_enabled_has_its_part_of_the_models_loss():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    plain = model(**inputs).loss.item()
    settings = {"objective": "cross_entropy", "layer_weights": "layer_skip", "layer_curriculum": "rotational:9"}
    with evidence_flow(model, **settings) as flow:
        flow.start_step(5)
        loss = model(**inputs).loss
        flow.check_step()
    assert loss.item() == pytest.approx(plain, rel=1e-6)


def test_an_moe_keeps_its_balance_loss():
    model, inputs = tiny_causal_lm("mixtral").train(), batch()
    output = model(**inputs)
    assert output.aux_loss.item() > 0
    loss, _, flow = run(model, inputs)
    terms = flow.log.pop()
    assert terms["evidence_flow/model_loss"] == pytest.approx(output.loss.item(), rel=1e-6)
    assert loss.item() == pytest.approx(output.loss.item() + terms["evidence_flow/loss"], rel=1e-5)


def test_a_looped_block_is_supervised_once_a_loop():
    model, inputs = tiny_causal_lm("llama"), batch()
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    loss, term = plain_mse(model.train(), {**inputs, "use_cache": False})
    added, _, flow = run(model, {**inputs, "use_cache": False})
    assert {"evidence_flow/layer_0", "evidence_flow/layer_1", "evidence_flow/layer_2"} <= flow.log.pop().keys()
    torch.testing.assert_close(added, (loss + term).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", ["mse", "cross_entropy"])
def test_bf16_autocast_is_followed(objective):
    model, inputs = tiny_causal_lm("llama"), batch()
    expected = run(model, inputs, objective=objective)[2].log.pop()
    original = model.forward
    model.forward = torch.autocast("cpu", torch.bfloat16)(original)
    actual = run(model, inputs, objective=objective)[2].log.pop()
    assert actual["evidence_flow/loss"] != expected["evidence_flow/loss"]
    assert actual["evidence_flow/loss"] == pytest.approx(expected["evidence_flow/loss"], rel=0.03)


def test_a_compiled_model_gives_the_same_with_one_graph_break():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    loss, expected, _ = run(model, inputs)
    torch._dynamo.reset()
    with evidence_flow(model):
        explained = torch._dynamo.explain(model)(**inputs)
    plain = torch._dynamo.explain(model)(**inputs)
    assert explained.graph_break_count - plain.graph_break_count <= 1, explained.break_reasons
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    model.zero_grad()
    with evidence_flow(compiled):
        actual = compiled(**inputs).loss
        actual.backward()
    torch.testing.assert_close(actual.detach(), loss, rtol=1e-5, atol=1e-5)
    assert_close(gradients(model), expected, 1e-5)
    torch._dynamo.reset()


def test_output_tuples_are_supervised_too():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    loss, _, _ = run(model, inputs)
    with evidence_flow(model):
        output = model(**inputs, return_dict=False)
    torch.testing.assert_close(output[0].detach(), loss)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_acts_only_in_training_with_gradients(objective):
    model, inputs = tiny_causal_lm("llama").eval(), batch()
    plain = model(**inputs)
    with evidence_flow(model, objective=objective):
        evaluated = model(**inputs)
        model.train()
        with torch.no_grad():
            no_gradient = model(**inputs)
        assert len(model.generate(inputs["input_ids"][:1, :4], max_new_tokens=2, do_sample=False)[0]) == 6
    for output in (evaluated, no_gradient):
        assert torch.equal(output.loss, plain.loss) and torch.equal(output.logits, plain.logits)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weight_zero_is_bit_identical_and_attaches_nothing(objective):
    model, inputs = tiny_causal_lm("llama"), batch()
    model.train()
    loss = model(**inputs).loss
    loss.backward()
    expected = gradients(model)
    with evidence_flow(model, objective=objective, weight=0.0) as flow:
        assert not flow.attached
    supervised, actual, _ = run(model, inputs, objective=objective, weight=0.0)
    assert torch.equal(supervised, loss.detach())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_after_the_block_the_model_is_as_before():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    before = model(**inputs).loss
    keys = list(model.state_dict())
    with evidence_flow(model, objective="nitp") as flow:
        model(**inputs)
        assert list(model.state_dict()) == keys
    flow.remove()
    assert torch.equal(model(**inputs).loss, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_exception_in_the_block_takes_the_hooks_off():
    model = tiny_causal_lm("llama").train()
    with pytest.raises(KeyError), evidence_flow(model):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_global_generator_is_not_touched():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    torch.manual_seed(3)
    expected = torch.rand(2)
    for objective in ("shuffled", "cross_entropy", "deep_supervision"):
        torch.manual_seed(3)
        run(model, inputs, objective=objective)
        assert torch.equal(torch.rand(2), expected), objective


def test_the_same_step_draws_the_same_tokens():
    model, inputs = tiny_causal_lm("llama"), batch()
    losses = []
    for steps in ((0, 1, 2), (2,)):
        with evidence_flow(model, objective="shuffled") as flow:
            for step in steps:
                flow.start_step(step)
                loss = model(**inputs).loss.item()
        losses.append(loss)
    with evidence_flow(model, objective="shuffled", seed=1) as flow:
        flow.start_step(2)
        other = model(**inputs).loss.item()
    assert losses[0] == losses[1] != other


def test_a_batch_without_labels_is_an_error():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    del inputs["labels"]
    with evidence_flow(model), pytest.raises(ValueError, match=r"got no `labels`.*GRPO.*Train with `labels`"):
        model(**inputs)


def test_a_trainer_that_calls_the_decoder_itself_is_an_error():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    with pytest.raises(RuntimeError, match=r"own forward pass did not run.*Train with `labels`"), evidence_flow(model):
        model.model(inputs["input_ids"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_step_without_a_term_is_an_error():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    with pytest.raises(RuntimeError, match="No layer-wise term"), evidence_flow(model) as flow:
        model(**inputs)
        flow.next_step()
        model.eval()(**inputs)
        flow.next_step()


def test_a_step_at_weight_zero_needs_no_term():
    with evidence_flow(tiny_causal_lm("llama"), weight_schedule="linear", total_steps=4) as flow:
        flow.start_step(4)
        flow.next_step()
        assert flow.weight == 0


def test_an_objective_can_be_a_function():
    model, inputs = tiny_causal_lm("llama"), batch()

    def own(batch, layer):
        return mse(batch.states_at(layer), batch.target_at(layer), batch.normalizer)

    settings = {"target_mask": True, "apply_final_norm": True, "token_fraction": 0.5, "layers": [0, 2]}
    expected, expected_gradients, _ = run(model, inputs, objective="mse", **settings)
    loss, actual, _ = run(model, inputs, objective=own, **settings)
    assert torch.equal(loss, expected)
    assert all(torch.equal(actual[name], expected_gradients[name]) for name in actual)


def test_a_registered_objective_has_modules_of_its_own():
    def make_modules(hidden_size, vocab_size, layers):
        return {str(layer): nn.Linear(hidden_size, hidden_size, bias=False) for layer in layers}

    @register_objective("projected", make_modules=make_modules)
    def projected(batch, layer):
        states = batch.own_modules[str(layer)](batch.states_at(layer))
        return mse(states, batch.target_at(layer), batch.normalizer)

    try:
        _, _, flow = run(tiny_causal_lm("llama"), batch(), objective="projected")
        with pytest.raises(ValueError, match="There is an objective 'projected' already"):
            register_objective("projected")(projected)
    finally:
        OBJECTIVES.pop("projected")
    assert len(flow.parameters()) == 3
    assert all(parameter.grad.abs().max() > 0 for parameter in flow.parameters())


def test_a_batch_without_a_single_target_costs_nothing():
    model, inputs = tiny_causal_lm("llama"), batch()
    inputs["labels"][:] = -100
    inputs["num_items_in_batch"] = torch.tensor(9)
    for objective in OBJECTIVES:
        loss, _, _ = run(model, inputs, objective=objective)
        assert loss.item() == 0.0


def test_only_the_released_features_are_pulled():
    model, inputs = tiny_causal_lm("llama"), batch()
    masked = run(model, inputs, objective="zero", target_mask=True)[2].log.pop()
    with torch.no_grad(), record_layer_states(decoder_parts(model)) as states:
        model(**inputs)
    labels, mask = inputs["labels"][:, 1:], inputs["attention_mask"]
    valid = (labels != -100) & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
    for layer, state in enumerate(states):
        block = state[:, :-1][valid][:, 8 * layer : 8 * (layer + 1)]
        assert masked[f"evidence_flow/layer_{layer}"] == pytest.approx(block.square().mean().item(), rel=1e-5)


def test_layers_and_their_weights_are_chosen():
    model, inputs = tiny_causal_lm("llama"), batch()
    every = run(model, inputs)[2].log.pop()
    flow = run(model, inputs, layers=[0, 2], layer_weights="linear")[2]
    terms = flow.log.pop()
    assert "evidence_flow/layer_1" not in terms
    expected = every["evidence_flow/layer_0"] * 2 / 3 + every["evidence_flow/layer_2"] * 4 / 3
    assert terms["evidence_flow/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_detached_target_gives_the_embeddings_no_gradient_of_its_own():
    model, inputs = tiny_causal_lm("llama"), batch()
    # The embeddings of the inputs are cut off, what is left comes from the targets
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.detach())
    for detach in (False, True):
        _, actual, _ = run(model, inputs, detach_target=detach)
        assert ("model.embed_tokens.weight" in actual) is not detach


@pytest.mark.parametrize("detach", [False, True])
def test_output_rows_can_be_the_target(detach):
    model, inputs = tiny_causal_lm("llama"), batch()
    inside = run(model, inputs, target="input_embedding")[0]
    outside = run(model, inputs, target="output_embedding", detach_target=detach)[0]
    assert inside != outside


def test_own_parameters_get_gradients_and_stay_out_of_the_model():
    model, inputs = tiny_causal_lm("llama"), batch()
    for objective, count in (("nitp", 1), ("deep_supervision", 4)):
        _, actual, flow = run(model, inputs, objective=objective)
        assert len(flow.parameters()) == count
        assert all(parameter.grad.abs().max() > 0 for parameter in flow.parameters())
        assert "projection" not in " ".join(actual)


def test_a_bad_readout_stops_the_first_step():
    model, inputs = tiny_causal_lm("llama").train(), batch()
    original = model.forward

    def scaled(*args, **kwargs):
        output = original(*args, **kwargs)
        output["logits"] = output["logits"] * 1.5
        return output

    model.forward = scaled
    with (
        evidence_flow(model, objective="cross_entropy"),
        pytest.raises(ValueError, match="more between its last layer"),
    ):
        model(**inputs)
    with evidence_flow(model, objective="mse"):
        assert torch.isfinite(model(**inputs).loss)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"objective": "msee"}, r"`objective` must be one of .* got 'msee'. Did you mean 'mse'\?"),
        ({"weight": -1.0}, "`weight` must be a finite number from 0, got -1.0"),
        ({"weight": float("nan")}, "`weight` must be a finite number"),
        ({"token_fraction": 0.0}, r"`token_fraction` must be in \(0, 1\], got 0.0"),
        ({"target": "embedding"}, "`target` must be one of 'input_embedding', 'output_embedding'"),
        ({"target": "input_embedding", "objective": "zero"}, "`target='input_embedding'` goes with 'mse'"),
        ({"target_mask": True, "objective": "lens_kl"}, "`target_mask=True` goes with"),
        ({"detach_target": False, "objective": "cosine"}, "`detach_target=False` with `objective='cosine'`"),
        ({"apply_final_norm": False, "objective": "lens_kl"}, "`apply_final_norm=False` with 'lens_kl'"),
        ({"layers": [1], "objective": "nitp"}, r"`layers=\[1\]` with 'nitp'"),
        ({"weight_schedule": "cos"}, "Did you mean 'cosine'"),
        ({"layer_weights": "drif"}, "Did you mean 'drift'"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1"),
    ],
)
def test_bad_settings_are_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        EvidenceFlowConfig(**fields)


def test_a_misspelt_override_gives_the_nearest_name():
    with (
        pytest.raises(TypeError, match=r"`wieght` is no field .* Did you mean `weight`"),
        evidence_flow(tiny_causal_lm("llama"), wieght=1.0),
    ):
        pass


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layers": [3]}, r"ids from 0 to 2, got \[3\]"),
        ({"layers": "last:1", "objective": "cross_entropy"}, "names only the last of 3 layers"),
        ({"objective": "nitp", "shallow_layer": 2}, "`shallow_layer` must be from 0 to 1"),
        ({"weight_schedule": "cosine"}, "pass `total_steps`"),
        ({"weight_warmup_steps": 0.5}, "pass `total_steps`"),
    ],
)
def test_settings_that_do_not_fit_fail_before_training(fields, message):
    with pytest.raises(ValueError, match=message), evidence_flow(tiny_causal_lm("llama"), **fields):
        pass


def test_the_weight_warms_up_and_decays():
    config = EvidenceFlowConfig(weight=2.0, weight_warmup_steps=0.25, weight_schedule="linear")
    weights = [config.weight_at(step, 8) for step in range(9)]
    assert weights[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert weights[5] == pytest.approx(1.0)
    assert weights[8] == 0.0
    cosine = EvidenceFlowConfig(weight_schedule="cosine")
    assert [cosine.weight_at(step, 4) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    assert EvidenceFlowConfig(weight_warmup_steps=3).weight_at(1, None) == pytest.approx(0.5)
