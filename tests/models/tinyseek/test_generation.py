"""TinySeek in `generate`: the cache of latents, absorbed decoding, batches, decoding methods, early exit."""

import pytest
import torch
from tiny_tinyseek import MOEUT, TINYSEEK, tiny_tinyseek
from transformers import DynamicCache, StaticCache

from hf_evidenceflow import EvidenceFlowConfig, decoder_parts, evidence_flow, record_layer_states
from hf_evidenceflow.early_exit import EarlyExitConfig, early_exit, simulate_early_exit
from hf_evidenceflow.models.tinyseek import modeling_tinyseek


LATENT, ROTARY = TINYSEEK["kv_lora_rank"], TINYSEEK["qk_rope_head_dim"]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
each_model = pytest.mark.parametrize(
    "model",
    [{"num_hidden_layers": loops, "norm_position": position} for loops in (1, 2, 3) for position in ("post", "pre")]
    + [{"num_hidden_layers": 4, "num_unique_layers": 2}],
    ids=lambda fields: "-".join(map(str, fields.values())),
    indirect=True,
)


@pytest.fixture
def model(request):
    """With biases and norms that are not neutral, three loops if nothing else is asked for."""
    model = tiny_tinyseek(**getattr(request, "param", {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def draw_ids(rows=2, length=11, seed=5):
    return torch.randint(3, TINYSEEK["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ids():
    return draw_ids()


@pytest.fixture
def prompts():
    """Three rows of unlike length, padded on the left."""
    ids, mask = draw_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, padding in ((0, 4), (2, 1)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def absorbed(monkeypatch):
    """Numbers of new and of cached positions of each absorbed call."""
    calls, original = [], modeling_tinyseek.absorbed_attention

    def spy(query, rotary_query, latent, *args):
        calls.append((query.shape[2], latent.shape[2]))
        return original(query, rotary_query, latent, *args)

    monkeypatch.setattr(modeling_tinyseek, "absorbed_attention", spy)
    return calls


@pytest.fixture
def expand_always(monkeypatch):
    def switch():
        monkeypatch.setattr(modeling_tinyseek, "absorbing_is_cheaper", lambda *_: False)

    return switch


@torch.no_grad()
def cached_logits(model, ids, sizes, cache=None, **inputs):
    """Logits of a text that is read in parts of these sizes."""
    parts, cache, start = [], DynamicCache(config=model.config) if cache is None else cache, 0
    for part in ids.split(sizes, dim=1):
        start += part.shape[1]
        mask = {name: tensor[:, :start] for name, tensor in inputs.items()}
        parts.append(model(part, past_key_values=cache, use_cache=True, **mask).logits)
    return torch.cat(parts, dim=1)


@each_model
@pytest.mark.parametrize("sizes", [[1] * 11, [6, 1, 1, 1, 1, 1], [4, 3, 4], [9, 2]], ids=str)
@torch.no_grad()
def test_cached_parts_give_the_logits_of_the_full_forward(model, ids, sizes):
    full = model(ids, use_cache=False).logits
    torch.testing.assert_close(cached_logits(model, ids, sizes), full, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sizes", [[1] * 11, [4, 3, 4]], ids=str)
@torch.no_grad()
def test_a_static_cache_gives_the_logits_of_the_full_forward(model, ids, sizes, attention):
    model.set_attn_implementation(attention)
    cache = StaticCache(config=model.config, max_cache_len=16)
    full = model(ids, use_cache=False).logits
    torch.testing.assert_close(cached_logits(model, ids, sizes, cache), full, rtol=0, atol=1e-5)


@torch.no_grad()
def test_decoding_is_absorbed_in_each_loop_and_the_prompt_is_not(model, ids, absorbed):
    model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert absorbed == [(1, length) for length in range(12, 19) for _ in range(3)]


@torch.no_grad()
def test_a_short_part_on_a_long_cache_is_absorbed(model, ids, absorbed):
    cached_logits(model, ids, [8, 3])
    assert absorbed == [(3, 11)] * 3


@torch.no_grad()
def test_without_a_cache_nothing_is_absorbed(model, ids, absorbed):
    model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, use_cache=False)
    assert not absorbed


@each_model
@torch.no_grad()
def test_absorbed_decoding_is_expanded_decoding(model, ids, expand_always, absorbed):
    settings = {**GREEDY, "attention_mask": torch.ones_like(ids), "output_logits": True}
    one = model.generate(ids, **settings, return_dict_in_generate=True)
    assert absorbed
    absorbed.clear()
    expand_always()
    other = model.generate(ids, **settings, return_dict_in_generate=True)
    assert not absorbed
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(torch.stack(one.logits), torch.stack(other.logits), rtol=0, atol=1e-5)


def test_the_gradient_through_an_absorbed_step_is_the_expanded_one(model, ids, expand_always, absorbed):
    gradients = []
    for _ in range(2):
        with torch.no_grad():
            cache = model(ids[:, :-1], use_cache=True).past_key_values
        model.zero_grad()
        model(ids[:, -1:], past_key_values=cache).logits.square().sum().backward()
        gradients.append(model.model.layers[0].self_attn.kv_b_proj.weight.grad.clone())
        expand_always()
    assert len(absorbed) == 3
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 1e-4, f"relative error {error:.2g}"


@each_model
@torch.no_grad()
def test_the_cache_holds_latent_and_rotary_key_of_each_layer_only(model, ids):
    cache = model(ids, use_cache=True).past_key_values
    assert len(cache.layers) == model.config.num_hidden_layers
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, 11, LATENT) and layer.values.shape == (2, 1, 11, ROTARY)


@torch.no_grad()
def test_a_static_cache_holds_latent_and_rotary_key_only(model, ids):
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(ids, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        assert layer.keys.shape == (2, 1, 16, LATENT) and layer.values.shape == (2, 1, 16, ROTARY)


@torch.no_grad()
def test_the_loops_of_a_block_have_keys_of_their_own(model, ids):
    layers = model(ids, use_cache=True).past_key_values.layers
    assert not torch.allclose(layers[0].keys, layers[1].keys, atol=1e-2)


@each_model
def test_a_static_cache_generates_what_a_dynamic_one_does(model, prompts):
    dynamic = model.generate(**prompts, **GREEDY)
    # Compiling, which a static cache brings with it on GPUs, is another matter
    static = model.generate(**prompts, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(dynamic, static)


@each_model
def test_a_batch_with_left_padding_generates_what_its_rows_do_alone(model, prompts):
    batch = model.generate(**prompts, **GREEDY)
    for row, (ids, mask) in enumerate(zip(prompts["input_ids"], prompts["attention_mask"])):
        alone = ids[None, mask == 1]
        single = model.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)
        assert single[0, alone.shape[1] :].tolist() == batch[row, 9:].tolist(), f"row {row}"


@torch.no_grad()
def test_generated_tokens_are_those_of_the_full_forward(model, ids):
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    logits = model(generated).logits[:, 10:-1]
    logits[..., model.config.eos_token_id] = -torch.inf
    assert torch.equal(logits.argmax(-1), generated[:, 11:])


def test_beam_search_with_and_without_a_cache_is_the_same(model, prompts):
    settings = {**GREEDY, "num_beams": 3}
    cached = model.generate(**prompts, **settings)
    assert torch.equal(cached, model.generate(**prompts, **settings, use_cache=False))
    assert not torch.equal(cached, model.generate(**prompts, **GREEDY))


def test_a_prompt_read_in_chunks_generates_the_same(model, ids):
    mask = torch.ones_like(ids)
    chunked = model.generate(ids, attention_mask=mask, **GREEDY, prefill_chunk_size=4)
    assert torch.equal(chunked, model.generate(ids, attention_mask=mask, **GREEDY))


@pytest.mark.parametrize("exit_layer", [1, 2])
def test_drafting_with_fewer_loops_gives_the_greedy_tokens(model, exit_layer):
    ids = draw_ids(1)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 15, "do_sample": False}
    greedy = model.generate(ids, **settings)
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model.generate(ids, **settings, assistant_early_exit=exit_layer), greedy)
    assert len(calls) % 3, "no pass had fewer loops"
    assert model.config.num_hidden_layers == 3


def test_sampling_is_the_same_for_the_same_seed(model, prompts):
    settings = {**GREEDY, "do_sample": True, "top_k": 0}
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(model.generate(**prompts, **settings))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_row_ends_at_the_end_of_text_and_is_padded(model, prompts):
    free = model.generate(**prompts, **GREEDY)
    end = free[1, 9 + 2].item()
    ids = model.generate(**prompts, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0)
    first = (free[1, 9:] == end).nonzero()[0, 0]
    assert ids[1, 9 : 9 + first + 1].tolist() == free[1, 9 : 9 + first + 1].tolist()
    assert not ids[1, 9 + first + 1 :].any()


EXITS = {"confidence": 0.12, "relative_change": 0.8}


@pytest.fixture(params=[{"norm_position": "post"}, {"norm_position": "pre"}, MOEUT], ids=["post", "pre", "moeut"])
def looped(request):
    return tiny_tinyseek(**{**request.param, "num_hidden_layers": 4})


@pytest.mark.parametrize("criterion", EXITS)
def test_early_exit_in_sequence_is_the_parallel_simulation(looped, prompts, criterion):
    config = EarlyExitConfig(criterion=criterion, threshold=EXITS[criterion])
    with early_exit(looped, config) as exits:
        ids = looped.generate(**prompts, **GREEDY)
    assert len(exits.depths[:, 1:].unique()) > 1
    mask = torch.cat([prompts["attention_mask"], torch.ones(3, 8, dtype=torch.long)], dim=1)
    simulated = simulate_early_exit(looped, ids, config, mask, prompt_length=9)
    assert torch.equal(simulated.depths[:, 8:-1], exits.depths)
    logits = simulated.logits[:, 8:-1]
    logits[..., looped.config.eos_token_id] = -torch.inf
    assert torch.equal(logits.argmax(-1), ids[:, 9:])


@pytest.mark.parametrize("criterion", EXITS)
def test_early_exit_gives_each_row_what_it_has_alone(looped, prompts, criterion):
    with early_exit(looped, criterion=criterion, threshold=EXITS[criterion]) as exits:
        batch = looped.generate(**prompts, **GREEDY)
        depths = exits.depths
        for row, (ids, mask) in enumerate(zip(prompts["input_ids"], prompts["attention_mask"])):
            alone = ids[None, mask == 1]
            single = looped.generate(alone, attention_mask=torch.ones_like(alone), **GREEDY)
            assert single[0, alone.shape[1] :].tolist() == batch[row, 9:].tolist()
            assert exits.depths[0].tolist() == depths[row].tolist()


def test_early_exit_leaves_the_cache_that_is_computed_without_one(looped, prompts):
    with early_exit(looped, threshold=EXITS["confidence"]) as exits:
        cached, depths = looped.generate(**prompts, **GREEDY), exits.depths
        recomputed = looped.generate(**prompts, **GREEDY, use_cache=False)
    assert torch.equal(cached, recomputed) and torch.equal(depths, exits.depths)


def test_an_exit_after_the_last_loop_is_plain_generation(looped, prompts):
    plain = looped.generate(**prompts, **GREEDY)
    with early_exit(looped, threshold=0.0, layers="last:1") as exits:
        assert torch.equal(looped.generate(**prompts, **GREEDY), plain)
    assert exits.average_depth == exits.num_layers == 4


@each_model
@torch.no_grad()
def test_recorded_states_are_those_after_each_loop(model, ids):
    parts = decoder_parts(model)
    expected = model(ids, output_hidden_states=True)
    with record_layer_states(parts) as states:
        model(ids)
    assert len(states) == model.config.num_hidden_layers and len(parts.layers) == model.config.num_unique_layers
    for state, other in zip(states[:-1], expected.hidden_states[1:]):
        assert torch.equal(state, other)
    assert torch.equal(parts.readout(states[-1]), expected.logits)


@pytest.mark.parametrize("model", [{}, {"norm_position": "pre"}, {"num_unique_layers": 3}], indirect=True, ids=str)
def test_layer_supervision_adds_the_loss_of_each_loop_but_the_last(model, ids):
    settings = EvidenceFlowConfig(objective="cross_entropy", weight=1.0, token_fraction=1.0, log_every=0)
    model.train()
    model.config.router_aux_loss_coef = 0
    model.model.layers.eval()  # neither noise nor dropout, so that losses compare
    with torch.no_grad(), record_layer_states(decoder_parts(model)) as states:
        plain = model(ids, labels=ids).loss
    readouts = [decoder_parts(model).readout(state) for state in states[:-1]]
    early = [
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) for logits in readouts
    ]
    with evidence_flow(model, settings):
        supervised = model(ids, labels=ids).loss
    torch.testing.assert_close(supervised - plain, sum(early), rtol=1e-4, atol=1e-4)
