"""Checks of decoding that every causal LM of the package passes, or refuses with the reason."""

import copy

import pytest
import torch


PROMPTS = torch.randint(3, 97, (3, 7), generator=torch.Generator().manual_seed(5))
MASK = torch.ones_like(PROMPTS)
MASK[0, :3] = MASK[2, :1] = 0
PROMPTS *= MASK
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)


def generate(model, count=6, **kwargs):
    """New tokens `[B, C]` of greedy decoding."""
    inputs = {"input_ids": PROMPTS, "attention_mask": MASK, **kwargs}
    output = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return output[:, -count:].tolist()


def uncached(model):
    return generate(model, use_cache=False)


def static_cache(model):
    return generate(model, cache_implementation="static", disable_compile=True)


def prefill_in_pieces(model):
    return generate(model, prefill_chunk_size=3)


def rows_without_padding(model):
    starts = (1 - MASK).sum(-1).tolist()
    return [generate(model, input_ids=PROMPTS[i : i + 1, s:], attention_mask=None)[0] for i, s in enumerate(starts)]


def prompts_as_embeddings(model):
    return generate(model, input_ids=None, inputs_embeds=model.get_input_embeddings()(PROMPTS))


def two_calls_with_a_cache(model):
    settings = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=4, **settings)
    mask = torch.cat([MASK, MASK.new_ones(3, 4)], dim=1)
    cache = first.past_key_values
    second = model.generate(first.sequences, attention_mask=mask, past_key_values=cache, max_new_tokens=2, **settings)
    return second.sequences[:, 7:].tolist()


WAYS = (
    uncached,
    static_cache,
    prefill_in_pieces,
    rows_without_padding,
    prompts_as_embeddings,
    two_calls_with_a_cache,
)
DRAFTS = {
    "a draft model": lambda model: {"assistant_model": copy.deepcopy(model)},
    "n-grams of the prompt": lambda model: {"prompt_lookup_num_tokens": 3},
    "its first layer": lambda model: {"assistant_early_exit": 1},
}


class GenerationChecks:
    """To be mixed in with a fixture `model`; `has_beams` tells whether beams and drafts work or are refused."""

    has_beams = True

    @pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
    def test_greedy_tokens_do_not_depend_on_the_way(self, model, way):
        model.double()  # else rounding may decide between two tokens
        assert way(model) == generate(model)

    @pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
    def test_drafts_change_no_token_or_are_refused(self, model, draft):
        inputs = {"input_ids": PROMPTS[1:2], "attention_mask": None}
        if not self.has_beams:
            with pytest.raises(ValueError, match="`thinking_mode=.*` does not support .*`assisted_generation`"):
                generate(model, **inputs, **draft(model))
            return
        model.double()
        assert generate(model, **inputs, **draft(model)) == generate(model, **inputs)

    def test_beams_are_the_same_with_and_without_a_cache_or_refused(self, model):
        if not self.has_beams:
            with pytest.raises(ValueError, match="`thinking_mode=.*` does not support .*`beam_search`"):
                generate(model, num_beams=3)
            return
        model.double()
        assert generate(model, num_beams=3) == generate(model, num_beams=3, use_cache=False)

    def test_generate_returns_states_and_attentions_of_each_layer(self, model):
        model.set_attn_implementation("eager")
        asked = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
        output = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=2, eos_token_id=None, **asked)
        layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
        for step, (new, seen) in enumerate([(7, 7), (1, 8)]):
            attentions, states = output.attentions[step], output.hidden_states[step]
            assert [tuple(each.shape) for each in attentions] == [(3, heads, new, seen)] * layers
            assert [tuple(each.shape) for each in states] == [(3, new, model.config.hidden_size)] * (layers + 1)

    def test_attention_implementations_agree_on_padded_rows(self, model):
        logits = []
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                logits.append(model(PROMPTS, attention_mask=MASK, position_ids=POSITIONS).logits[MASK.bool()])
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)

    def test_a_causal_mask_of_four_dimensions_changes_nothing(self, model):
        tokens = PROMPTS[1:2]
        mask = torch.full((1, 1, 7, 7), torch.finfo(torch.float32).min).triu(1)
        with torch.no_grad():
            masked = model(tokens, attention_mask=mask, position_ids=torch.arange(7)[None]).logits
            torch.testing.assert_close(masked, model(tokens).logits, rtol=0, atol=1e-4)

    def test_a_cache_that_was_cut_gives_the_same_logits(self, model):
        tokens = PROMPTS[1:2]
        with torch.no_grad():
            whole = model(tokens, use_cache=True)
            whole.past_key_values.crop(-3)
            again = model(tokens[:, 4:], past_key_values=whole.past_key_values).logits
        torch.testing.assert_close(again, whole.logits[:, 4:], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_it_decodes_and_trains_in_half_precision(self, model, dtype):
        model.to(dtype)
        generate(model, count=2)
        loss = model.train()(PROMPTS, attention_mask=MASK, labels=PROMPTS).loss
        loss.backward()
        assert loss.isfinite()

    @pytest.mark.slow
    def test_a_pass_and_a_step_compile_without_a_graph_break(self, model):
        torch.compiler.reset()
        compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
        with torch.no_grad():
            expected = model(PROMPTS, use_cache=False).logits
            torch.testing.assert_close(compiled(PROMPTS, use_cache=False).logits, expected, rtol=0, atol=1e-4)
            prompt = model(PROMPTS[1:2, :6], use_cache=True).past_key_values
            step = compiled(PROMPTS[1:2, 6:], past_key_values=prompt, position_ids=torch.tensor([[6]])).logits
        torch.testing.assert_close(step, expected[1:2, 6:], rtol=0, atol=1e-4)
