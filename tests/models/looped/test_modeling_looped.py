"""One Llama with loops: one loop is Llama, the cache has a slot for each loop and layer, exits save what they skip."""

import pytest
import torch
from causal_lm_checks import CausalLMChecks
from hub_round_trip import run_without_package
from tiny_models import TINY
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from hf_evidenceflow import LoopedLlamaConfig, LoopedLlamaForCausalLM
from hf_evidenceflow.models.hub import hub_code
from hf_evidenceflow.models.looped.looped_layer import LoopedLlamaDecoderLayer


WIDE = {**TINY, "initializer_range": 0.2}
IDS = torch.randint(3, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(5))
OURO = {"num_loops": 4, "loop_norm": True, "exit_gate": True, "sandwich_norm": True}
SHAPES = {
    "all layers": {},
    "a block": {"num_hidden_layers": 4, "loop_blocks": [[1, 3]]},
    "layers by themselves": {"loop_blocks": [[0, 1], [1, 2]], "loop_damping": True},
    "ouro": {"loop_norm": True, "sandwich_norm": True, "qk_norm": True, "qkv_bias": True},
    "lotus": {"loop_norm": True, "loop_injection": True},
    "huginn": {"num_hidden_layers": 4, "loop_blocks": [[1, 3]], "loop_adapter": True, "loop_norm": True},
    "injected blocks": {"loop_blocks": [[0, 1], [1, 3]], "loop_injection": True},
}


def make_model(seed=7, **fields):
    torch.manual_seed(seed)
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**{**WIDE, **fields})).eval()
    with torch.no_grad():  # norms and biases that a mix-up would show in
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "loop_" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


class TestBlock(CausalLMChecks):
    @staticmethod
    def make_model():
        fields = {"num_unique_layers": 4, "loop_blocks": [[1, 3]], "num_loops": 3, "loop_damping": True}
        return LoopedLlamaForCausalLM(LoopedLlamaConfig(**WIDE, **fields))


class TestOuro(CausalLMChecks):
    @staticmethod
    def make_model():
        return LoopedLlamaForCausalLM(LoopedLlamaConfig(**{**WIDE, **OURO, "num_hidden_layers": 2}))


class TestEarlyExit(CausalLMChecks):
    @staticmethod
    def make_model():
        fields = {**WIDE, **OURO, "num_hidden_layers": 2, "early_exit_threshold": 0.7}
        return LoopedLlamaForCausalLM(LoopedLlamaConfig(**fields))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_one_loop_is_llama_to_the_bit_in_logits_gradients_and_tokens(implementation):
    torch.manual_seed(7)
    plain = LlamaForCausalLM(LlamaConfig(**WIDE)).eval()
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**WIDE, loop_damping=True, loop_norm=True)).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    outputs, tokens = [], []
    for each in (plain, model):
        each.set_attn_implementation(implementation)
        outputs.append(each(IDS, labels=IDS))
        outputs[-1].loss.backward()
        tokens.append(each.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(tokens[0], tokens[1])
    for one, other in zip(plain.parameters(), model.parameters()):
        assert torch.equal(one.grad, other.grad)


def by_hand(model, ids):
    """Logits from the layers of the model, called one after the other as the formulas say."""
    body, config = model.model, model.config
    states = body.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    inputs = {"position_embeddings": body.rotary_emb(states, position_ids=positions)}
    inputs["attention_mask"] = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)[None, None]

    def run(states, start, end):
        for layer in body.layers[start:end]:
            states = layer(states, **inputs)
        return states

    at = 0
    for start, end in config.loop_blocks:
        entry = states = run(states, at, start)
        for loop in range(config.num_loops):
            if config.loop_injection and loop:
                states = states + entry
            if config.loop_adapter:
                both = torch.cat([entry, states if loop else torch.zeros_like(entry)], -1)
                states = both @ body.loop_adapter.weight.T
            new = run(states, start, end)
            states = states + (new - states) / config.num_loops if config.loop_damping else new
            if config.loop_norm and loop < config.num_loops - 1:
                states = body.norm(states)
        at = end
    return model.lm_head(body.norm(run(states, at, config.num_unique_layers)))


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_prelude_blocks_and_coda_run_in_the_order_of_the_formulas(fields):
    model = make_model(**fields, num_loops=3)
    torch.testing.assert_close(model(IDS).logits, by_hand(model, IDS), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_around_latent_positions_that_loop_the_text_is_read_once():
    """LOTUS by hand: one pass over the prompt, R over the latent positions behind its cache, one over what follows."""
    model = make_model(num_loops=4, loop_norm=True, loop_injection=True, loop_token_id=2)
    ids = IDS[:1].clone()
    ids[:, 2:5] = 2
    logits = model(ids).logits
    assert not torch.allclose(logits, make_model(num_loops=4, loop_norm=True, loop_injection=True)(ids).logits)
    model.config.loop_token_id = None
    model.set_num_loops(1)
    body, cache = model.model, DynamicCache(config=model.config)
    found = [body(ids[:, :2], past_key_values=cache).last_hidden_state]
    embeddings = states = body.embed_tokens(ids[:, 2:5])
    for loop in range(4):
        if loop:
            cache.crop(-3)
        latent = body(inputs_embeds=states, past_key_values=cache).last_hidden_state
        states = embeddings + latent
    found += [latent, body(ids[:, 5:], past_key_values=cache).last_hidden_state]
    torch.testing.assert_close(model.lm_head(torch.cat(found, 1)), logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_fresh_adapter_says_what_the_plain_model_does_with_any_number_of_loops():
    torch.manual_seed(7)
    plain = LlamaForCausalLM(LlamaConfig(**WIDE)).eval()
    torch.manual_seed(7)
    model = LoopedLlamaForCausalLM(LoopedLlamaConfig(**WIDE, loop_blocks=[[1, 3]], num_loops=3, loop_adapter=True))
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(model.eval()(IDS).logits, plain(IDS).logits, atol=1e-5, rtol=1e-5)


def test_noise_at_the_start_of_loops_is_drawn_in_training_only():
    model = make_model(num_loops=2, loop_adapter=True, loop_start_noise=0.5)
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "lazy": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=9),
}


@pytest.mark.parametrize("num_loops", range(1, 9))
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_a_cache_of_every_kind_gives_the_logits_of_the_whole_pass(cache, num_loops):
    model = make_model(num_hidden_layers=3, loop_blocks=[[1, 2]], num_loops=num_loops)
    filled = CACHES[cache](model.config)
    parts = [model(ids, past_key_values=filled, use_cache=True).logits for ids in IDS.split([4, 1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(IDS, use_cache=False).logits, atol=1e-4, rtol=1e-4)
    assert len(filled.layers) == model.config.num_hidden_layers == num_loops + 2
    assert all(layer.get_seq_length() == 7 for layer in filled.layers)


@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_latent_positions_loop_behind_a_cache_of_every_kind(cache):
    model = make_model(num_loops=3, loop_norm=True, loop_injection=True, loop_token_id=2)
    ids = IDS.clone()
    ids[0, 2:4], ids[1, 3:5] = 2, 2
    filled = CACHES[cache](model.config)
    parts = [model(each, past_key_values=filled, use_cache=True).logits for each in ids.split([3, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("injection", [False, True])
@pytest.mark.parametrize("mode", ["freeze", "select"])
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_exits_give_the_same_logits_with_every_cache_and_in_one_pass(cache, mode, injection):
    fields = {"early_exit_threshold": 0.7, "early_exit_mode": mode, "loop_injection": injection}
    model = make_model(**OURO, **fields, num_hidden_layers=2)
    filled = CACHES[cache](model.config)
    parts = [model(ids, past_key_values=filled, use_cache=True).logits for ids in IDS.split([4, 1, 1, 1], dim=1)]
    whole = model(IDS, use_cache=False).logits
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    assert all(layer.get_seq_length() == 7 for layer in filled.layers)
    model.config.early_exit_threshold = 1.0
    assert (model(IDS).logits - whole).abs().max() > 1e-2


@torch.no_grad()
def test_without_later_readers_freezing_and_selecting_are_the_same():
    model = make_model(**OURO, num_hidden_layers=1, early_exit_threshold=0.7)
    frozen = model(IDS[:, :1]).logits
    model.config.early_exit_mode = "select"
    torch.testing.assert_close(model(IDS[:, :1]).logits, frozen)


@torch.no_grad()
def test_padding_and_other_rows_change_no_exit():
    model = make_model(**OURO, num_hidden_layers=2, early_exit_threshold=0.7)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    for row in range(2):
        torch.testing.assert_close(logits[row : row + 1], model(IDS[row : row + 1]).logits, atol=1e-4, rtol=1e-4)


def count_mlps(model, call):
    calls = []
    handles = [layer.mlp.register_forward_hook(lambda *_: calls.append(1)) for layer in model.model.layers]
    call()
    for handle in handles:
        handle.remove()
    return len(calls)


@torch.no_grad()
def test_loops_that_no_token_needs_are_not_run_and_their_slots_are_written():
    model = make_model(**OURO, num_hidden_layers=2, early_exit_threshold=0.4)
    model.model.early_exit_gate.bias.fill_(10.0)  # everyone leaves after the first loop
    cache = DynamicCache(config=model.config)
    assert count_mlps(model, lambda: model(IDS, past_key_values=cache)) == 2
    assert [layer.get_seq_length() for layer in cache.layers] == [7] * 8
    assert count_mlps(model, lambda: model(IDS, use_cache=False)) == 2
    model.config.early_exit_mode = "select"
    assert count_mlps(model, lambda: model(IDS)) == 8


@torch.no_grad()
def test_the_states_of_all_layer_calls_are_seen_where_loops_are_not_run():
    model = make_model(**OURO, num_hidden_layers=2, early_exit_threshold=0.4)
    model.model.early_exit_gate.bias.fill_(10.0)
    assert len(model(IDS, output_hidden_states=True).hidden_states) == 9


def test_another_number_of_loops_counts_the_slots_anew():
    model = make_model(num_loops=2)
    model.set_num_loops(5)
    assert model.config.num_hidden_layers == 15 == len(model(IDS, use_cache=True).past_key_values.layers)


def test_loops_set_in_the_config_of_a_built_model_are_refused_with_the_call_to_make():
    model = make_model(num_loops=2)
    model.config.num_loops = 3
    with pytest.raises(ValueError, match=r"model.set_num_loops\(3\)"):
        model(IDS)


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="needs a `Cache` with a slot for each loop and layer, got tuple"):
        make_model(num_loops=2)(IDS, past_key_values=())


def test_loops_set_in_the_config_before_the_model_is_built_count(tmp_path):
    make_model(num_loops=2).save_pretrained(tmp_path)
    config = LoopedLlamaConfig.from_pretrained(tmp_path)
    config.num_loops = 4
    model = LoopedLlamaForCausalLM.from_pretrained(tmp_path, config=config)
    assert model.config.num_hidden_layers == 12


def test_loops_given_when_it_is_loaded_count(tmp_path):
    make_model(num_loops=2).save_pretrained(tmp_path)
    model = LoopedLlamaForCausalLM.from_pretrained(tmp_path, num_loops=4)
    assert len(model(IDS, use_cache=True).past_key_values.layers) == 12


def test_reentrant_checkpointing_gives_the_gradients_of_damped_loops():
    model = make_model(num_loops=3, loop_damping=True, loop_blocks=[[1, 3]]).train()

    def gradients():
        model.zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for one, other in zip(plain, gradients()):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_training_with_a_gate_reaches_the_gate_and_all_weights():
    model = make_model(**OURO, num_hidden_layers=2, early_exit_threshold=0.5).train()
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_draft_of_the_first_loop_gives_that_loop_s_logits():
    model = make_model(**OURO, num_hidden_layers=2)
    with torch.no_grad():
        expected = model.lm_head(model.model(IDS, output_loops=True).loop_states[0])
        model.config.num_hidden_layers = 2
        torch.testing.assert_close(model(IDS).logits, expected)


@pytest.mark.slow
def test_the_saved_code_loads_where_the_package_cannot_be_imported(tmp_path):
    model = make_model(**OURO, num_hidden_layers=2, early_exit_threshold=0.7, loop_lora_r=2)
    with hub_code(model):
        model.save_pretrained(tmp_path / "model")
    torch.save({"input_ids": IDS, "logits": model(IDS).logits.detach()}, tmp_path / "expected.pt")
    script = """
        from transformers import AutoModelForCausalLM
        saved = torch.load("expected.pt", weights_only=True)
        model = AutoModelForCausalLM.from_pretrained("model", trust_remote_code=True)
        torch.testing.assert_close(model(saved["input_ids"]).logits, saved["logits"], atol=1e-5, rtol=1e-4)
    """
    run_without_package(script, tmp_path)


def test_layers_are_named_for_devices():
    assert LoopedLlamaForCausalLM._no_split_modules == [LoopedLlamaDecoderLayer.__name__]
