"""The rollout engine against the stock decoding loop."""

import threading

import pytest
import torch
from plain_models import make_plain
from tiny_models import TINY
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM, RolloutEngine
from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.rollouts import support
from hf_evidenceflow.rollouts.shared_prompt_cache import SharedPromptCache


SAMPLING = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}


def generate(model, inputs, engine=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    kwargs = {"max_new_tokens": 23, "do_sample": False, **kwargs}
    return model.generate(**inputs, **kwargs, **({} if engine is None else {"custom_generate": engine}))


def completion_lengths(sequences, prompt_length=9):
    completions = sequences[:, prompt_length:]
    ended = (completions == TINY["eos_token_id"]).long()
    return torch.where(ended.any(1), ended.argmax(1) + 1, completions.shape[1])


class BatchSizes:
    """Rows of each decoding pass of a model."""

    def __init__(self, model):
        self.sizes = []
        self.handle = model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            self.sizes.append(len(kwargs["input_ids"]))


@pytest.mark.parametrize("max_rows", [None, 1, 4])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_greedy_tokens_are_those_of_the_stock_loop(family, max_rows, padded):
    model = make_plain(family)
    expected = generate(model, padded)
    assert len(completion_lengths(expected).unique()) > 1
    assert generate(model, padded, RolloutEngine(max_rows)).tolist() == expected.tolist()


def test_prompts_without_padding_give_the_tokens_of_the_stock_loop(plain, padded):
    inputs = {"input_ids": padded["input_ids"][:, 7:]}
    assert generate(plain, inputs, RolloutEngine()).tolist() == generate(plain, inputs).tolist()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_multinomial_draws_are_those_of_the_stock_loop(plain, padded, options):
    expected = generate(plain, padded, **SAMPLING, **options)
    found = generate(plain, padded, RolloutEngine(draws="multinomial"), **SAMPLING, **options)
    assert found.tolist() == expected.tolist()


def test_multinomial_draws_leave_the_generator_where_the_stock_loop_does(plain, padded):
    generate(plain, padded, **SAMPLING)
    expected = torch.rand(3)
    generate(plain, padded, RolloutEngine(draws="multinomial"), **SAMPLING)
    assert torch.rand(3).tolist() == expected.tolist()


@pytest.mark.parametrize("max_rows", [1, 2, 5, 7])
def test_table_draws_do_not_change_with_the_rows_beside_them(plain, padded, max_rows):
    expected = generate(plain, padded, RolloutEngine(), **SAMPLING)
    assert len(completion_lengths(expected).unique()) > 1
    assert generate(plain, padded, RolloutEngine(max_rows), **SAMPLING).tolist() == expected.tolist()


def test_table_draws_follow_the_distribution_of_the_stock_loop(plain, padded):
    inputs = {name: tensor[:1] for name, tensor in padded.items()}
    options = {"do_sample": True, "top_k": 5, "num_return_sequences": 4000, "max_new_tokens": 2}
    counts = [
        torch.bincount(generate(plain, inputs, engine, **options)[:, -1], minlength=TINY["vocab_size"]) / 4000
        for engine in (None, RolloutEngine())
    ]
    # Total variation of two samples of 4,000 from one distribution over at most 25 pairs is about .02
    assert (counts[0] - counts[1]).abs().sum() / 2 < 0.05


def test_rows_that_end_leave_the_batch(padded):
    model = make_plain()
    batches = BatchSizes(model)
    sequences = generate(model, padded, RolloutEngine(), **SAMPLING)
    sizes = batches.sizes[2:]  # after the two passes of the attention's check
    assert sum(sizes) == int((completion_lengths(sequences) - 1).sum())
    assert sizes == sorted(sizes, reverse=True)


def test_waiting_rows_enter_as_soon_as_others_end(padded):
    model = make_plain()
    batches = BatchSizes(model)
    options = {"eos_token_id": [1, *range(50, 75)], "do_sample": True, "top_k": 0}
    inputs = {"input_ids": torch.arange(3, 63)[:, None]}  # 60 prompts of one token
    sequences = generate(model, inputs, RolloutEngine(max_rows=6), **options)
    fed = [row.tolist().index(0) if 0 in row else 23 for row in sequences[:, 1:]]
    sizes = batches.sizes[2:]
    assert max(sizes) <= 6
    waves = sum(max(fed[start : start + 6]) for start in range(0, 60, 6))
    assert len(sizes) < 0.7 * waves


def test_prompts_may_take_several_passes(plain, padded):
    expected = generate(plain, padded, RolloutEngine(), **SAMPLING)
    found = generate(plain, padded, RolloutEngine(prefill_tokens=10), **SAMPLING)
    assert found.tolist() == expected.tolist()


class ForbidLast(LogitsProcessor):
    """Forbids each row its last token and a token of its own: it needs history and the rows of the call."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        scores = scores.scatter(1, input_ids[:, -1:], -float("inf"))
        return scores.scatter(1, self.tokens[:, None], -float("inf"))


@pytest.mark.parametrize("max_rows", [None, 3])
def test_processors_see_the_rows_and_tokens_that_they_see_in_the_stock_loop(plain, padded, max_rows):
    first = generate(plain, padded)[:, 9]
    processors = LogitsProcessorList([ForbidLast(first)])
    expected = generate(plain, padded, logits_processor=processors)
    assert (expected[:, 9] != first).all()
    found = generate(plain, padded, RolloutEngine(max_rows), logits_processor=processors)
    assert found.tolist() == expected.tolist()


class EndAt(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.arange(len(input_ids)) + 11 <= input_ids.shape[1]


def test_stopping_criteria_end_rows_as_in_the_stock_loop(plain, padded):
    criteria = StoppingCriteriaList([EndAt()])
    expected = generate(plain, padded, stopping_criteria=criteria)
    found = generate(plain, padded, RolloutEngine(), stopping_criteria=criteria)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("count", [1, 2, 90])
def test_any_number_of_new_tokens(plain, padded, count):
    options = {"max_new_tokens": count, "eos_token_id": None}
    found = generate(plain, padded, RolloutEngine(), **options)
    assert found.shape[1] == 9 + count
    assert found.tolist() == generate(plain, padded, **options).tolist()


def test_several_tokens_may_end_a_row(plain, padded):
    options = {"eos_token_id": [1, *range(20, 60)]}
    assert generate(plain, padded, RolloutEngine(), **options).tolist() == generate(plain, padded, **options).tolist()


def test_nothing_is_left_of_a_rollout_even_after_an_error(padded):
    model = make_plain()
    before = vars(ALL_ATTENTION_FUNCTIONS).copy()

    def fail(module, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            raise RuntimeError("broken")

    handle = model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(RuntimeError, match="broken"):
        generate(model, padded, RolloutEngine())
    handle.remove()
    assert vars(ALL_ATTENTION_FUNCTIONS) == before
    generate(model, padded, RolloutEngine())
    assert vars(ALL_ATTENTION_FUNCTIONS) == before


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stock_generation_goes_on_beside_a_rollout_of_the_same_model(padded, attention):
    model = make_plain()
    model.set_attn_implementation(attention)
    expected = generate(model, padded).tolist()
    found = []

    def answer(module, args, kwargs):
        """In the middle of a pass of the rollout, as another thread may."""
        if isinstance(kwargs.get(CACHE), SharedPromptCache) and not found:
            found.append(None)
            thread = threading.Thread(target=lambda: found.append(generate(model, padded).tolist()))
            thread.start()
            thread.join()

    model.model.layers[0].self_attn.register_forward_pre_hook(answer, with_kwargs=True)
    assert generate(model, padded, RolloutEngine()).tolist() == expected
    assert found == [None, expected]


def test_a_model_in_training_with_checkpointing_is_accepted_and_left_as_it_was(padded):
    model = make_plain().train()
    model.gradient_checkpointing_enable()
    model.model.norm.eval()
    before = [module.training for module in model.modules()]
    assert RolloutEngine().accepts(model, model.generation_config, {})
    assert [module.training for module in model.modules()] == before


def test_two_threads_may_roll_out_one_model(padded):
    model = make_plain()
    expected = generate(model, padded).tolist()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(generate(model, padded, RolloutEngine(max_rows=3)).tolist()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


@pytest.mark.parametrize("same_model", [True, False])
def test_passes_of_two_rollouts_overlap(padded, same_model):
    """No lock is held during a pass: each rollout waits, in the middle of its first one, for the other to be there."""
    models = [make_plain(), make_plain()]
    if same_model:
        models[1] = models[0]
    meeting, met = threading.Barrier(2, timeout=30), threading.local()

    def wait(module, args, kwargs):
        if isinstance(kwargs.get(CACHE), SharedPromptCache) and not vars(met).get("done"):
            met.done = True
            meeting.wait()

    for model in set(models):
        assert RolloutEngine().accepts(model, model.generation_config, {})
        model.model.layers[0].self_attn.register_forward_pre_hook(wait, with_kwargs=True)
    expected, found = generate(make_plain(), padded).tolist(), []

    def roll_out(model):
        found.append(generate(model, padded, RolloutEngine()).tolist())

    threads = [threading.Thread(target=roll_out, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 2


def test_a_model_of_layers_that_keep_nothing_else_may_roll_out(padded):
    torch.manual_seed(0)
    model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v2m3")).eval()
    assert generate(model, padded, RolloutEngine()).tolist() == generate(model, padded).tolist()


@pytest.mark.parametrize("variant", ["v3m1", "v4m1", "value_residual"])
def test_a_model_that_uses_cached_keys_elsewhere_is_refused(padded, variant):
    torch.manual_seed(0)
    model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant=variant)).eval()
    if variant == "value_residual":  # it mixes values before they are cached
        assert generate(model, padded, RolloutEngine()).tolist() == generate(model, padded).tolist()
        return
    with pytest.raises(ValueError, match="more with cached keys and values"):
        generate(model, padded, RolloutEngine())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty=1.5"),
    ],
)
def test_calls_that_it_cannot_run_are_refused_with_the_reason(plain, padded, options, words):
    with pytest.raises(ValueError, match=words):
        generate(plain, padded, RolloutEngine(), **options)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_frequencies_that_depend_on_the_length_are_refused(padded, rope):
    fields = TINY | {"max_position_embeddings": 16}
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 16, **rope}
    model = LlamaForCausalLM(LlamaConfig(**fields, rope_parameters=rope)).eval()
    with pytest.raises(ValueError, match=f"rope_type='{rope['rope_type']}'"):
        generate(model, padded, RolloutEngine())


def test_a_cache_of_ones_own_is_refused(plain, padded):
    with pytest.raises(ValueError, match="`past_key_values` is given"):
        generate(plain, padded, RolloutEngine(), past_key_values=DynamicCache(config=plain.config))


def test_sharded_weights_are_refused(plain, padded, monkeypatch):
    monkeypatch.setattr(support, "DTensor", torch.nn.Parameter)  # a real one needs a process group
    with pytest.raises(ValueError, match="its weights are sharded"):
        generate(plain, padded, RolloutEngine())


def test_an_empty_prompt_is_refused(plain, padded):
    padded["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="Row 1 has an empty prompt"):
        generate(plain, padded, RolloutEngine())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_rows": 0}, "max_rows"),
        ({"draws": "gumbel"}, "'table', 'multinomial'"),
        ({"prefill_tokens": 0}, "prefill"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RolloutEngine(**options)
