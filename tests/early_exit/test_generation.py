"""Early exit inside `generate`: the fast path is the plain definition, row by row, and leaves nothing behind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_families import token_ids
from tiny_tinyseek import tiny_tinyseek
from torch import nn
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import create_causal_mask

from hf_evidenceflow.early_exit import (
    EarlyExitConfig,
    adaptive_depth as adaptive_depth_module,
    early_exit,
    exit_at,
    simulate_early_exit,
)


FAMILIES = ["llama", "qwen2", "gemma2", "gpt_neox", "gpt2"]
# Under each of them rows leave after unlike layers, some after the last
CRITERIA = [
    {"criterion": "confidence", "threshold": 0.035},
    {"criterion": "confidence", "threshold": 0.1, "layers": [1, 3]},
    {"criterion": "relative_change", "threshold": 0.3},
]
each_criterion = pytest.mark.parametrize("settings", CRITERIA, ids=["confidence", "two_layers", "relative_change"])


@torch.no_grad()
def reference(model, prompts, new_tokens, criterion, threshold, layers="all"):
    """Token by token and layer by layer, as the definition has it: every layer is run whole, then overwritten."""
    ids, mask, rows = prompts["input_ids"], prompts["attention_mask"], len(prompts["input_ids"])
    num_layers, inner = len(model.model.layers), model.model
    cache, depths = DynamicCache(config=model.config), [torch.full((rows,), num_layers)]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1]
    for _ in range(new_tokens - 1):
        logits[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.long)], dim=1)
        state = inner.embed_tokens(ids[:, -1:])
        position = mask.sum(-1, keepdim=True) - 1
        causal = create_causal_mask(model.config, state, mask, cache, position_ids=position)
        rotary = inner.rotary_emb(state, position_ids=position)
        depth = torch.full((rows,), num_layers)
        for index, layer in enumerate(inner.layers):
            after = layer(state, attention_mask=causal, position_embeddings=rotary, past_key_values=cache)
            for row in range(rows):
                if depth[row] <= index:
                    after[row] = state[row]
                    continue
                if layers != "all" and index not in layers:
                    continue
                if criterion == "confidence":
                    leaves = model.lm_head(inner.norm(after[row, 0])).softmax(-1).max() >= threshold
                else:
                    leaves = (after[row] - state[row]).norm() / state[row].norm() <= threshold
                if leaves:
                    depth[row] = index + 1
            state = after
        depths.append(depth)
        logits = model.lm_head(inner.norm(state))[:, -1]
    logits[:, model.config.eos_token_id] = -torch.inf
    ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids, torch.stack(depths, dim=1), cache


def largest_gap(cache, other):
    return max(
        (one - two).abs().max().item()
        for left, right in zip(cache.layers, other.layers, strict=True)
        for one, two in ((left.keys, right.keys), (left.values, right.values))
    )


@each_criterion
def test_tokens_depths_and_cache_are_those_of_the_plain_definition(trained, prompts, no_end, settings):
    with early_exit(trained, **settings) as exits:
        output = trained.generate(**prompts, **no_end, return_dict_in_generate=True)
    ids, depths, cache = reference(trained, prompts, no_end["max_new_tokens"], **settings)
    assert len(set(exits.depths.flatten().tolist())) > 1
    assert torch.equal(output.sequences, ids)
    assert exits.depths.tolist() == depths.tolist()
    gap = largest_gap(output.past_key_values, cache)
    assert gap < 1e-5, f"keys and values differ by {gap:.2g}"  # rounding of one mask form against another


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_keys_alone_gives_the_cache_of_whole_layers(make_model, prompts, no_end, family, monkeypatch):
    model, caches = make_model(family), []
    for alone in (True, False):
        monkeypatch.setattr(adaptive_depth_module, "writes_can_stand_alone", lambda *_, alone=alone: alone)
        with early_exit(model, threshold=0.06) as exits:
            output = model.generate(**prompts, **no_end, return_dict_in_generate=True)
        assert (exits.depths[:, 1:].amax(0) < exits.num_layers).any(), "no step in which all rows left"
        caches.append(output.past_key_values)
    assert largest_gap(*caches) == 0.0


@each_criterion
def test_a_batch_gives_what_its_rows_give_alone(trained, prompts, no_end, settings):
    with early_exit(trained, **settings) as exits:
        batch, depths = trained.generate(**prompts, **no_end), None
        depths = exits.depths
        for row in range(3):
            length = prompts["attention_mask"][row].sum()
            alone = prompts["input_ids"][row : row + 1, -length:]
            single = trained.generate(input_ids=alone, attention_mask=torch.ones_like(alone), **no_end)
            assert single[0, length:].tolist() == batch[row, prompts["input_ids"].shape[1] :].tolist()
            assert exits.depths[0].tolist() == depths[row].tolist()


@each_criterion
def test_without_a_cache_the_same_comes_out(trained, prompts, no_end, settings):
    with early_exit(trained, **settings) as exits:
        cached, depths = trained.generate(**prompts, **no_end), exits.depths
        recomputed = trained.generate(**prompts, **no_end, use_cache=False)
    assert torch.equal(cached, recomputed)
    assert torch.equal(depths, exits.depths)


@each_criterion
def test_one_parallel_pass_gives_the_depths_and_tokens_of_the_sequential_ones(trained, prompts, no_end, settings):
    with early_exit(trained, **settings) as exits:
        ids = trained.generate(**prompts, **no_end)
    mask = torch.cat([prompts["attention_mask"], torch.ones(3, 11, dtype=torch.long)], dim=1)
    parallel = simulate_early_exit(trained, ids, EarlyExitConfig(**settings), mask, prompt_length=10)
    assert torch.equal(parallel.depths[:, 9:-1], exits.depths)
    logits = parallel.logits[:, 9:-1]
    logits[..., trained.config.eos_token_id] = -torch.inf
    assert torch.equal(logits.argmax(-1), ids[:, 10:])


def test_sampling_draws_the_same_with_and_without_a_cache(trained, prompts):
    draws = []
    with early_exit(trained, threshold=0.035):
        for use_cache in (True, False):
            torch.manual_seed(3)
            settings = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": True, "use_cache": use_cache}
            draws.append(trained.generate(**prompts, **settings))
    assert torch.equal(*draws)


def test_an_exit_after_the_last_layer_is_plain_generation_bit_for_bit(trained, prompts):
    settings = {"max_new_tokens": 8, "output_scores": True, "return_dict_in_generate": True, "do_sample": False}
    plain = trained.generate(**prompts, **settings)
    with early_exit(trained, threshold=0.0, layers="last:1") as exits:
        last = trained.generate(**prompts, **settings)
    assert torch.equal(plain.sequences, last.sequences)
    assert torch.equal(torch.stack(plain.scores), torch.stack(last.scores))
    assert largest_gap(plain.past_key_values, last.past_key_values) == 0.0
    assert exits.average_depth == exits.num_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_where_all_rows_left_no_mlp_is_run(make_model, prompts, family):
    model, calls = make_model(family), []
    for module in model.modules():
        if type(module).__name__.endswith("MLP"):
            module.register_forward_hook(lambda *_: calls.append(1))
    with early_exit(model, threshold=0.0):
        calls.clear()
        model.generate(**prompts, max_new_tokens=7, min_new_tokens=7, do_sample=False)
    assert len(calls) == 5 + 6 * 1  # the prompt at full depth, then one layer for each of six tokens


def test_what_lies_behind_the_end_of_a_row_does_not_count(trained, prompts):
    with early_exit(trained, threshold=0.0) as exits:
        free = trained.generate(**prompts, max_new_tokens=9, min_new_tokens=9, do_sample=False)
        end = free[1, 10 + 3].item()
        ids = trained.generate(**prompts, max_new_tokens=9, do_sample=False, eos_token_id=end)
    generated = (ids[:, 10:] == end).int().cumsum(-1).cumsum(-1) <= 1  # up to the first end
    assert not generated.all() and generated.any(0).all()
    assert torch.equal(exits.depths > 0, generated)


def test_a_finished_row_does_not_keep_the_others_from_leaving(trained, prompts):
    two, settings = {name: tensor[1:] for name, tensor in prompts.items()}, {"max_new_tokens": 9, "do_sample": False}
    calls = []
    handles = [layer.mlp.register_forward_hook(lambda *_: calls.append(1)) for layer in trained.model.layers]
    # Half of the tokens are foreseen after the first layer; padding, which no training showed, never is
    with early_exit(trained, threshold=0.1) as exits:
        first = trained.generate(**two, **settings)[0, 10].item()
        calls.clear()
        trained.generate(**two, **settings, eos_token_id=first)
    for handle in handles:
        handle.remove()
    assert exits.depths[0].tolist() == [5] + [0] * 8
    assert (exits.depths[1] > 0).all() and exits.depths[1].min() == 1
    assert len(calls) == exits.depths[1].sum()


def test_a_looped_block_has_an_exit_after_each_loop(prompts):
    torch.manual_seed(0)
    model = looped_model()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "use_cache": False}
    with early_exit(model, criterion="relative_change", threshold=0.1) as exits:
        ids = model.generate(**prompts, **settings)
    assert exits.num_layers == 3
    assert len(set(exits.depths[:, 1:].flatten().tolist())) > 1
    mask = torch.cat([prompts["attention_mask"], torch.ones(3, 6, dtype=torch.long)], dim=1)
    config = EarlyExitConfig(criterion="relative_change", threshold=0.1)
    assert torch.equal(simulate_early_exit(model, ids, config, mask, 10).depths[:, 9:-1], exits.depths)


def looped_model():
    config = LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    model.model.layers = nn.ModuleList([model.model.layers[0]] * 3)
    return model


def test_forward_passes_outside_generate_are_at_full_depth(trained, prompts):
    with torch.no_grad():
        plain = trained(**prompts).logits
        with early_exit(trained, threshold=0.0):
            inside = trained(**prompts).logits
    assert torch.equal(plain, inside)


def test_an_adapter_model_exits_as_its_base_does(make_model, prompts, no_end):
    model = make_model("llama")
    with early_exit(model, threshold=0.05) as exits:
        plain, depths = model.generate(**prompts, **no_end), exits.depths
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with early_exit(adapted, threshold=0.05) as exits:
        assert torch.equal(adapted.generate(**prompts, **no_end), plain)
    assert torch.equal(exits.depths, depths)


def traces(model):
    return [
        (name, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


def test_nothing_is_left_on_the_model_after_an_exception(make_model, prompts, monkeypatch):
    model = make_model("llama")
    before = traces(model)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), early_exit(model, threshold=0.0):
        model.generate(**prompts, max_new_tokens=2)
        model.generate(**prompts, max_new_tokens=5, stopping_criteria=[fail])
    assert traces(model) == before
    with early_exit(model):
        model.generate(**prompts, max_new_tokens=2)
    assert traces(model) == before


def test_two_early_exits_at_once_are_refused(make_model):
    model = make_model("llama")
    with early_exit(model), pytest.raises(RuntimeError, match="already"), exit_at(model, 2):
        pass
    with exit_at(model, 2):
        pass


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 2},
        {"assistant_early_exit": 2},
        {"cache_implementation": "static"},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"prefill_chunk_size": 4},
        {"custom_generate": lambda *_: None},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_generate_cannot_do_with_early_exit_is_refused(make_model, prompts, asked):
    model = make_model("llama")
    with early_exit(model), pytest.raises(ValueError, match="cannot be used with"):
        model.generate(**prompts, max_new_tokens=2, **asked)


def test_what_a_config_takes_over_from_the_model_is_refused_too(make_model, prompts):
    model = make_model("llama")
    model.generation_config.num_beams = 2
    with early_exit(model), pytest.raises(ValueError, match="cannot be used with generation mode `beam_search`"):
        model.generate(**prompts, generation_config=GenerationConfig(max_new_tokens=2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threshold": 1.1}, r"in \[0, 1\].*1.1"),
        ({"threshold": -0.1}, r"in \[0, 1\].*-0.1"),
        ({"criterion": "relative_change", "threshold": float("nan")}, "at least 0.*nan"),
        ({"criterion": "entropy"}, "confidence.*entropy"),
        ({"layers": [5]}, r"0 to 4.*\[5\]"),
        ({"layers": [1], "min_layer": 2}, "No layer is left"),
        ({"min_layer": -1}, "-1"),
    ],
)
def test_settings_out_of_range_are_refused(make_model, settings, message):
    model = make_model("llama")
    with pytest.raises(ValueError, match=message), early_exit(model, **settings):
        pass


@pytest.mark.parametrize("depth", [0, 6, -1, 2.0])
def test_a_depth_that_does_not_exist_is_refused(make_model, depth):
    with pytest.raises(ValueError, match="from 1 to 5"), exit_at(make_model("llama"), depth):
        pass


class ScaledLlama(LlamaForCausalLM):
    """A model that does more to its logits than is known."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_a_model_that_cannot_be_read_out_is_refused(make_model):
    model = ScaledLlama(make_model("llama").config)
    with pytest.raises(ValueError, match="ScaledLlama does more"), early_exit(model):
        pass


def test_min_layer_leaves_out_the_layers_before_it():
    assert EarlyExitConfig(layers="every:2", min_layer=2).exit_depths(7) == [4, 6]


def test_there_is_no_average_depth_before_generation(make_model):
    with early_exit(make_model("llama")) as exits, pytest.raises(RuntimeError, match="generate"):
        _ = exits.average_depth


@pytest.mark.parametrize("criterion", ["confidence", "relative_change"])
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_experts_are_skipped_for_rows_that_left_and_nothing_else_changes(criterion, norm_position):
    model = tiny_tinyseek(num_hidden_layers=4, norm_position=norm_position)
    ids = token_ids(3, 9)
    threshold = {"confidence": 0.12, "relative_change": 0.8}[criterion]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    counts = []
    experts = model.model.layers[0].mlp
    experts.register_forward_pre_hook(lambda module, args: counts.append(args[0].shape[:2].numel()))
    with early_exit(model, criterion=criterion, threshold=threshold) as exits:
        counts.clear()  # of the pass that looked at the model
        output = model.generate(ids, **settings)
    depths = exits.depths[:, 1:]
    assert depths.min() < 4 and len(depths.unique()) > 1
    assert sum(counts) == 4 * ids.numel() + depths.sum()
    simulated = simulate_early_exit(
        model, output, EarlyExitConfig(criterion=criterion, threshold=threshold), prompt_length=ids.shape[1]
    )
    assert torch.equal(simulated.depths[:, 9:-1], depths)
    last = model.generation_config.eos_token_id
    logits = simulated.logits[:, 8:-1].clone()
    logits[..., last] = -torch.inf  # `min_new_tokens`
    assert torch.equal(logits.argmax(-1), output[:, 9:])
