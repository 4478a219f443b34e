"""TinySeek as a Hugging Face model: loading, implementations, dtypes, padding, losses, adapters, configuration."""

import copy

import pytest
import torch
from accelerate import init_empty_weights
from causal_lm_checks import CausalLMChecks
from hub_round_trip import run_without_package
from peft import LoraConfig, get_peft_model
from tiny_tinyseek import MOEUT, TINYSEEK, tiny_tinyseek
from transformers import AutoModelForCausalLM

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM, hub_code


LOOPED, ORDINARY, MIXED = {}, {"num_unique_layers": 3}, {"num_hidden_layers": 4, "num_unique_layers": 2}
KINDS = {
    "looped": LOOPED,
    "looped_pre_norm": {"norm_position": "pre"},
    "ordinary": ORDINARY,
    "mixed": MIXED,
    "sigma": {"router_type": "sigma", "router_noise": False},
    "moeut": MOEUT,
}
each_kind = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
# Neither dropout nor noise, so that two passes in training are equal
STILL = {"hidden_dropout": 0.0, "router_noise": False}
LORA = {"r": 2, "target_modules": ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"], "task_type": "CAUSAL_LM"}


def make(**fields):
    return TinySeekForCausalLM(TinySeekConfig(**{**TINYSEEK, **fields}))


def realigned(model):
    """Weights are mapped from their file at any address, and how a product rounds depends on it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()


class TinySeekChecks(CausalLMChecks):
    lora_targets = ["q_b_proj", "kv_b_proj", "o_proj"]
    takes_prefix = False

    def test_reload_is_bit_equal(self, model, input_ids, tmp_path):
        model.save_pretrained(tmp_path)
        reloaded = realigned(type(model).from_pretrained(tmp_path))
        assert torch.equal(reloaded(input_ids).logits, model(input_ids).logits)


class TestLooped(TinySeekChecks):
    @staticmethod
    def make_model():
        return make(**STILL)


class TestLoopedPreNorm(TinySeekChecks):
    @staticmethod
    def make_model():
        return make(**STILL, norm_position="pre")


class TestOrdinary(TinySeekChecks):
    @staticmethod
    def make_model():
        return make(**STILL, **ORDINARY)


class TestMixed(TinySeekChecks):
    @staticmethod
    def make_model():
        return make(**STILL, **MIXED, n_shared_experts=0, tie_word_embeddings=True)


def draw_ids(rows=2, length=7, seed=5):
    return torch.randint(3, TINYSEEK["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ids():
    return draw_ids()


def perturb(model, seed=1):
    """Biases and norms away from their neutral initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model, ids, labels=None, **inputs):
    model.zero_grad()
    model(ids, labels=ids if labels is None else labels, use_cache=False, **inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_equal(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_each_layer_calls_its_block_in_turn(ids):
    model = tiny_tinyseek(num_hidden_layers=6, num_unique_layers=2)
    calls = []
    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
    model(ids)
    assert calls == [0, 1, 0, 1, 0, 1]


def test_a_loop_is_an_ordinary_transformer_with_equal_blocks(ids):
    looped, ordinary = perturb(tiny_tinyseek()), tiny_tinyseek(**ORDINARY)
    for block in ordinary.model.layers:
        block.load_state_dict(looped.model.layers[0].state_dict())
    ordinary.model.embed_tokens.load_state_dict(looped.model.embed_tokens.state_dict())
    ordinary.lm_head.load_state_dict(looped.lm_head.state_dict())
    torch.testing.assert_close(ordinary(ids).logits, looped(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("rows", [1, 5])
def test_implementations_of_the_experts_agree(experts, rows):
    model, ids = perturb(tiny_tinyseek()), draw_ids(rows)
    with torch.no_grad():
        own = model(ids).logits
    own_gradients = gradients(model, ids)
    model.set_experts_implementation(experts)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, own, rtol=0, atol=1e-5)
    assert_gradients_equal(own_gradients, gradients(model, ids), 1e-5)


def test_few_tokens_on_many_experts_take_the_loop_and_agree():
    model, ids = perturb(tiny_tinyseek(n_routed_experts=50)), draw_ids(1, 1)
    with torch.no_grad():
        looped = model(ids).logits
    torch.testing.assert_close(model(ids).logits, looped, rtol=0, atol=1e-5)  # with gradients: grouped


def bf16_error(model, ids):
    expected = model(ids).logits
    logits = model.bfloat16()(ids).logits
    assert logits.dtype == torch.bfloat16
    return (logits.float() - expected).norm() / expected.norm()


# bf16 carries three digits; a routing decision on the edge may turn over
@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
@torch.no_grad()
def test_bf16_is_close(experts, ids):
    model = tiny_tinyseek(initializer_range=0.05, moe_intermediate_size=16)
    model.set_experts_implementation(experts)
    error = bf16_error(model, ids)
    assert error < 0.1, f"relative error {error:.2g}"


@torch.no_grad()
def test_bf16_is_close_with_experts_of_an_odd_width(ids):
    error = bf16_error(tiny_tinyseek(initializer_range=0.05, moe_intermediate_size=9), ids)
    assert error < 0.1, f"relative error {error:.2g}"


@each_kind
def test_eager_and_sdpa_attention_agree(fields, ids):
    model = perturb(tiny_tinyseek(**fields))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    inputs = {"attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100).index_fill(1, torch.tensor(3), -100)}
    own, own_gradients = model(ids, attention_mask=mask).logits, gradients(model, ids, **inputs)
    model.set_attn_implementation("eager")
    logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask == 1], own[mask == 1], rtol=0, atol=1e-5)
    assert_gradients_equal(own_gradients, gradients(model, ids, **inputs), 1e-5)


def test_autocast_to_bf16_trains_finitely_and_close(ids):
    model = tiny_tinyseek(**STILL, initializer_range=0.05).train()
    expected = model(ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert abs(loss - expected) < 0.05 * expected
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.model.layers[0].mlp.gate.weight.grad.any()


def test_attentions_are_probabilities_of_each_layer(ids):
    model = tiny_tinyseek()
    model.set_attn_implementation("eager")
    attentions = model(ids, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in attentions] == [(2, 4, 7, 7)] * 3
    torch.testing.assert_close(attentions[1].sum(-1), torch.ones(2, 4, 7))


def test_resizing_embeddings_keeps_the_old_logits(ids):
    model = tiny_tinyseek()
    old = model(ids).logits
    model.resize_token_embeddings(101)
    new = model(ids).logits
    assert new.shape[-1] == 101 and model.lm_head.bias.shape == (101,) and model.config.vocab_size == 101
    torch.testing.assert_close(new[..., :97], old, rtol=0, atol=1e-6)


def test_tied_embeddings_are_one_tensor_before_and_after_loading(tmp_path, ids):
    model = tiny_tinyseek(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = realigned(AutoModelForCausalLM.from_pretrained(tmp_path))
    for one in (model, loaded):
        assert one.lm_head.weight is one.model.embed_tokens.weight
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_device_map_loads_the_same_model(tmp_path, ids):
    model = perturb(tiny_tinyseek(norm_position="pre"))
    model.save_pretrained(tmp_path)
    loaded = realigned(AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu"))
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), init_empty_weights], ids=["torch", "accelerate"])
def test_a_model_can_be_built_without_memory(context):
    with context():
        model = AutoModelForCausalLM.from_config(TinySeekConfig(**TINYSEEK))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_weights_put_onto_an_empty_model_give_its_logits(ids):
    model = perturb(tiny_tinyseek())
    with init_empty_weights(include_buffers=False):
        empty = make().eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(ids).logits, model(ids).logits)


def test_initial_weights_have_their_standard_deviations():
    config = {"hidden_size": 128, "n_routed_experts": 32, "initializer_range": 0.03, "router_init_std": 0.2}
    block = make(**config).model.layers[0]
    for weight, std in (
        (block.mlp.gate.weight, 0.2),
        (block.mlp.gate.noise_weight, 0.2),
        (block.mlp.experts.up_proj, 0.03),
        (block.mlp.experts.down_proj, 0.03),
        (block.self_attn.kv_a_proj_with_mqa.weight, 0.03),
    ):
        # The smallest has 2560 entries: a standard error of 1.4 %
        assert abs(weight.std() / std - 1) < 0.06
    assert not block.mlp.experts.up_proj_bias.any() and not block.self_attn.o_proj.bias.any()


@pytest.fixture
def adapted():
    torch.manual_seed(2)
    model = get_peft_model(perturb(tiny_tinyseek(**STILL)), LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def test_a_step_on_adapters_lowers_the_loss_and_changes_nothing_else(adapted, ids):
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
    before = adapted.train()(ids, labels=ids).loss
    before.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(p.grad.any() for p in trained.values()) and len(trained) == 2 * len(LORA["target_modules"])
    optimizer.step()
    assert adapted(ids, labels=ids).loss < before
    assert all(torch.equal(p, frozen[name]) for name, p in adapted.named_parameters() if name in frozen)


@torch.no_grad()
def test_merged_adapters_give_the_same_logits(adapted, ids):
    expected = adapted(ids).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_cached_decoding_with_active_adapters_is_the_full_forward(adapted):
    ids = draw_ids(length=9)
    full = adapted(ids).logits
    with adapted.disable_adapter():
        plain = adapted(ids).logits
    assert (full - plain).abs().max() > 0.1
    cache, steps = None, []
    for token in ids.split(1, dim=1):
        output = adapted(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=0, atol=1e-5)


def padded(ids, left, right=0):
    rows = len(ids)
    fill = lambda width, value: torch.full((rows, width), value)  # noqa: E731
    return (
        torch.cat([fill(left, 0), ids, fill(right, 0)], dim=1),
        torch.cat([fill(left, 0), torch.ones_like(ids), fill(right, 0)], dim=1),
    )


@each_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_padding_on_either_side_does_not_change_the_logits(fields, attention, ids):
    model = perturb(tiny_tinyseek(**fields))
    model.set_attn_implementation(attention)
    expected = model(ids).logits
    with_padding, mask = padded(ids, 3, 2)
    # What stands at padding does not matter either
    with_padding[mask == 0] = 17
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(with_padding, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 3:-2], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_positions_only_count_as_differences(ids):
    model = perturb(tiny_tinyseek())
    shifted = model(ids, position_ids=torch.arange(7)[None] + 11).logits
    torch.testing.assert_close(shifted, model(ids).logits, rtol=0, atol=1e-4)  # angles in fp32
    swapped = model(ids, position_ids=torch.tensor([[0, 2, 1, 3, 4, 5, 6]])).logits
    assert (swapped - model(ids).logits).abs().max() > 1e-2


@torch.no_grad()
def test_padding_changes_neither_the_loss_nor_the_balance(ids):
    model = perturb(tiny_tinyseek())
    expected = model(ids, labels=ids)
    with_padding, mask = padded(ids, 0, 4)
    labels = with_padding.masked_fill(mask == 0, -100)
    output = model(with_padding, attention_mask=mask, labels=labels)
    torch.testing.assert_close(output.aux_loss, expected.aux_loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_packed_row_gives_what_its_documents_give_alone():
    model = perturb(tiny_tinyseek(norm_position="pre"))
    ids = draw_ids(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model(ids, position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(part).logits for part in ids.split([4, 5], dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    assert (model(ids).logits - alone).abs().max() > 0.1


@torch.no_grad()
def test_embeddings_may_be_given_instead_of_ids(ids):
    model = tiny_tinyseek()
    logits = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert torch.equal(logits, model(ids).logits)


def test_ids_and_embeddings_together_are_an_error(ids):
    model = tiny_tinyseek()
    with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))


@torch.no_grad()
def test_only_the_asked_logits_are_computed(ids):
    model = tiny_tinyseek()
    full = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, full[:, -2:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, full[:, [1, 4]])


@each_kind
def test_router_logits_of_each_layer_carry_a_gradient(fields, ids):
    model = tiny_tinyseek(**fields)
    output = model(ids, output_router_logits=True)
    layers = model.config.num_hidden_layers
    assert [tuple(logits.shape) for logits in output.router_logits] == [(14, 7)] * layers
    torch.stack(output.router_logits).square().sum().backward()
    assert all(block.mlp.gate.weight.grad.any() for block in model.model.layers)


def test_recording_router_logits_changes_neither_loss_nor_gradients(ids):
    model = perturb(tiny_tinyseek())
    own = gradients(model, ids)
    assert_gradients_equal(own, gradients(model, ids, output_router_logits=True), 1e-6)


def test_recorded_router_logits_choose_the_experts(ids):
    model = tiny_tinyseek()
    chosen = []
    model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1]))
    recorded = model(ids, output_router_logits=True).router_logits
    for logits, indices in zip(recorded, chosen, strict=True):
        assert torch.equal(logits.topk(3).indices, indices)


@each_kind
@torch.no_grad()
def test_hidden_states_are_the_input_and_each_layers_output(fields, ids):
    model = tiny_tinyseek(**fields)
    states = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(2, 7, 24)] * (model.config.num_hidden_layers + 1)
    assert torch.equal(states[0], model.get_input_embeddings()(ids))
    assert torch.equal(model.lm_head(states[-1]), model(ids).logits)


@torch.no_grad()
def test_router_noise_is_drawn_in_training_only(ids):
    model = tiny_tinyseek(hidden_dropout=0.0)
    quiet = model(ids).logits
    assert torch.equal(quiet, model(ids).logits)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 1e-3


@torch.no_grad()
def test_without_router_noise_training_computes_what_evaluation_does(ids):
    model = tiny_tinyseek(**STILL)
    quiet = model(ids).logits
    assert torch.equal(model.train()(ids).logits, quiet)


def test_noise_is_learned(ids):
    model = tiny_tinyseek(hidden_dropout=0.0).train()
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[0].mlp.gate.noise_weight.grad.any()


@pytest.mark.parametrize("position", ["post", "pre"])
@torch.no_grad()
def test_dropout_is_applied_to_what_attention_and_experts_add(position, ids):
    model = tiny_tinyseek(hidden_dropout=0.5, router_noise=False, norm_position=position)
    calls = []
    model.model.layers[0].dropout.register_forward_hook(lambda *_: calls.append(1))
    quiet = model(ids).logits
    assert (model.train()(ids).logits - quiet).abs().max() > 0.1
    assert len(calls) == 2 * 2 * 3  # passes, parts of a block, loops


@torch.no_grad()
def test_loss_is_cross_entropy_and_the_weighted_balance(ids):
    model = tiny_tinyseek(router_aux_loss_coef=0.7)
    output = model(ids, labels=ids)
    cross_entropy = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert output.aux_loss > 0.1
    torch.testing.assert_close(output.loss, cross_entropy + 0.7 * output.aux_loss)


def test_without_a_weight_no_balance_is_computed(ids):
    output = tiny_tinyseek(router_aux_loss_coef=0)(ids, labels=ids)
    assert output.aux_loss is None and output.loss.isfinite()


def test_the_balance_reaches_the_router(ids):
    model = tiny_tinyseek()
    model(ids, labels=ids).aux_loss.backward()
    assert model.model.layers[0].mlp.gate.weight.grad.any()
    assert model.lm_head.weight.grad is None


def minimize(loss_of, parameters, lr):
    optimizer, losses = torch.optim.Adam(parameters, lr=lr), []
    for _ in range(40):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_minimizing_the_balance_evens_the_use_of_experts():
    model, ids = tiny_tinyseek(num_hidden_layers=1), draw_ids(8, 16)
    losses = minimize(lambda: model(ids, labels=ids).aux_loss, model.model.layers[0].mlp.gate.parameters(), lr=0.02)
    assert losses[-1] < losses[0] / 3, losses


def test_accumulated_micro_batches_give_the_gradients_of_the_whole_batch():
    model = perturb(tiny_tinyseek(**STILL, router_aux_loss_coef=0.5)).train()
    # Equal halves: the balance of a batch is no mean of unequal ones
    part = draw_ids(4)
    whole = torch.cat([part, part])
    items = whole[:, 1:].numel()
    expected = gradients(model, whole, num_items_in_batch=items)
    model.zero_grad()
    for _ in range(2):
        model(part, labels=part, num_items_in_batch=items).loss.backward()
    assert_gradients_equal(expected, {name: p.grad for name, p in model.named_parameters() if name in expected}, 1e-6)


@torch.no_grad()
def test_micro_batches_share_the_balance_by_their_labels():
    model = tiny_tinyseek(router_aux_loss_coef=0.5)
    rows = draw_ids(8)
    labels = rows.clone()
    labels[1, :5] = labels[6, 2:] = -100
    items = (labels[:, 1:] != -100).sum()
    plain = copy.deepcopy(model)
    plain.config.router_aux_loss_coef = 0
    for size in (1, 2, 4, 8):
        added = []
        for ids, kept in zip(rows.split(size), labels.split(size)):
            output = model(ids, labels=kept, num_items_in_batch=items)
            own = output.loss - plain(ids, labels=kept, num_items_in_batch=items).loss
            share = (kept[:, 1:] != -100).sum() / items
            torch.testing.assert_close(own, 0.5 * share * output.aux_loss, rtol=0, atol=1e-5)
            added.append(share)
        torch.testing.assert_close(sum(added), torch.tensor(1.0))


def test_training_lowers_the_loss():
    model = tiny_tinyseek(initializer_range=0.05).train()
    ids = draw_ids(4)
    losses = minimize(lambda: model(ids, labels=ids).loss, model.parameters(), lr=1e-2)
    assert losses[-1] < losses[0] / 2, losses


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qk_rope_head_dim": 7}, "`qk_rope_head_dim` must be even, got 7"),
        ({"num_experts_per_tok": 8}, r"`num_experts_per_tok` must be from 1 to `n_routed_experts` \(7\), got 8"),
        ({"num_experts_per_tok": 0}, "`num_experts_per_tok` must be from 1 .* got 0"),
        ({"num_unique_layers": 2}, "`num_unique_layers` must divide `num_hidden_layers`, got 2 and 3"),
        ({"num_unique_layers": 0}, "`num_unique_layers` must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be at least 1, got 0"),
        ({"n_routed_experts": 0}, "`n_routed_experts` must be at least 1, got 0"),
        ({"n_shared_experts": -1}, "`n_shared_experts` must be at least 0, got -1"),
        ({"kv_lora_rank": 0}, "`kv_lora_rank` must be at least 1, got 0"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
        ({"num_attention_heads": 5}, r"`hidden_size` \(24\) .* `num_attention_heads` \(5\): give `qk_nope_head_dim`"),
        ({"hidden_dropout": 1.0}, r"`hidden_dropout` must be in \[0, 1\), got 1.0"),
        ({"hidden_dropout": float("nan")}, "`hidden_dropout` must be a finite number, got nan"),
        ({"router_init_std": -0.1}, "`router_init_std` must be at least 0, got -0.1"),
        ({"router_aux_loss_coef": float("nan")}, "`router_aux_loss_coef` must be a finite number, got nan"),
        ({"layer_norm_eps": 0.0}, "`layer_norm_eps` must be above 0, got 0.0"),
        ({"norm_position": "mid"}, "`norm_position` must be 'post', 'pre' or 'peri', got 'mid'"),
        ({"norm_position": "peri"}, "`norm_position='peri'` needs `attention_experts`"),
        ({"router_type": "soft"}, "`router_type` must be 'top_k' or 'sigma', got 'soft'"),
        ({"router_type": "sigma"}, "has no noise: set `router_noise` to False"),
        ({"attention_experts": 2}, "`attention_experts=2` needs `router_type='sigma'`"),
        ({**MOEUT, "attention_experts_per_tok": 4}, r"must be from 1 to `attention_experts` \(3\), got 4"),
        ({"num_unique_layer": 3}, "`num_unique_layer` is no field .* did you mean `num_unique_layers`"),
        ({"router_noize": False}, "did you mean `router_noise`"),
        ({"n_routed_expert": 3}, "did you mean `n_routed_experts`"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_bad_field_is_an_error_that_names_it(fields, message):
    with pytest.raises(ValueError, match=message):
        TinySeekConfig(**{**TINYSEEK, **fields})


def test_a_field_assigned_wrongly_is_an_error_when_the_model_is_built():
    config = TinySeekConfig(**TINYSEEK)
    config.qk_rope_head_dim = 5
    with pytest.raises(ValueError, match="`qk_rope_head_dim` must be even, got 5"):
        TinySeekForCausalLM(config)


def test_heads_need_not_divide_the_width_where_their_sizes_are_given(ids):
    model = tiny_tinyseek(num_attention_heads=5, qk_nope_head_dim=3)
    assert model(ids).logits.shape == (2, 7, 97)


def test_foreign_config_keys_are_accepted():
    assert TinySeekConfig(some_vendor_key=3).some_vendor_key == 3


def test_the_default_configuration_is_the_published_one():
    with torch.device("meta"):
        model = TinySeekForCausalLM(TinySeekConfig())
    attention, moe = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert (attention.nope_size, attention.value_size, attention.rope_size, attention.latent_size) == (64, 64, 8, 128)
    assert moe.experts.up_proj.shape == (384, 32, 512)
    assert moe.shared_experts.up_proj.weight.shape == (24 * 32, 512)


@each_kind
@pytest.mark.slow
def test_the_forward_compiles_as_one_graph(fields, ids):
    model = perturb(tiny_tinyseek(**fields))
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    expected = model(**inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled.loss, expected.loss, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_hub_round_trip_without_the_package(tmp_path):
    for kind, fields in KINDS.items():
        model = perturb(tiny_tinyseek(**fields))
        with hub_code(model):
            model.save_pretrained(tmp_path / kind)
        assert "auto_map" not in model.config.to_dict()
        with torch.no_grad():
            generated = model.generate(draw_ids(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
            torch.save({"logits": model(draw_ids()).logits, "generated": generated}, tmp_path / f"{kind}.pt")
    torch.save(draw_ids(), tmp_path / "ids.pt")
    script = f"""
        from transformers import AutoModelForCausalLM
        ids = torch.load("ids.pt", weights_only=True)
        for kind in {list(KINDS)}:
            saved = torch.load(kind + ".pt", weights_only=True)
            model = AutoModelForCausalLM.from_pretrained(kind, trust_remote_code=True).eval()
            for parameter in model.parameters():  # from where the file has them to aligned addresses
                parameter.data = parameter.data.clone()
            logits = model(ids).logits
            assert torch.equal(logits, saved["logits"]), (logits - saved["logits"]).abs().max()
            generated = model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
            assert torch.equal(generated, saved["generated"])
            assert type(model).__module__.startswith("transformers_modules"), kind
    """
    run_without_package(script, tmp_path)
