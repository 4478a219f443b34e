"""What a completion is made of, against the model's own forward pass and against states that are known."""

import pytest
import torch
from hostile_text import HOSTILE, assert_harmless
from thinking_models import make_thinker

from hf_evidenceflow.probe.completion_trace import ThoughtTrace, TracedToken
from hf_evidenceflow.probe.thoughts import THOUGHT_COLUMNS, thought_table, thought_words
from hf_evidenceflow.probe.thoughts_page import write_thoughts_page


PROMPT = "2 cats"
FUSING = ["projection", "soft", "coconut"]


def trace_of(mode, tokenizer, **kwargs):
    model = make_thinker(mode)
    return model, thought_words(model, tokenizer, [PROMPT], max_new_tokens=6, **kwargs)[0]


@torch.no_grad()
def rollout_of(model, tokenizer):
    """Token ids, the number of those of the prompt, and what a rollout of the same completion recorded."""
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    output = model.generate(ids, do_sample=False, max_new_tokens=6, return_dict_in_generate=True, tokenizer=tokenizer)
    return output.sequences, ids.shape[1], output


def probabilities(model, ids, **thoughts):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **thoughts).logits[0].float().softmax(-1)


def test_a_fixed_number_of_thoughts_comes_before_the_text(tokenizer):
    _, trace = trace_of("coconut", tokenizer)
    assert trace.prompt == PROMPT and [token.thinks for token in trace.tokens] == [True] * 3 + [False] * 3
    assert {thought.token for thought in trace.thoughts} == {tokenizer.decode([29])}


@pytest.mark.parametrize("mode", ["soft", "pause", "coconut"])
def test_the_first_thoughts_words_are_those_after_the_prompt(mode, tokenizer):
    model, trace = trace_of(mode, tokenizer, k=4)
    best = probabilities(model, torch.tensor([tokenizer(PROMPT)["input_ids"]]))[-1].topk(4)
    words = trace.tokens[0].words
    assert [value for _, value in words] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert words[0][0] == tokenizer.decode([int(best.indices[0])])


@pytest.mark.parametrize("mode", FUSING)
def test_words_are_read_with_the_recorded_states_and_the_others_without_any(mode, tokenizer):
    model, trace = trace_of(mode, tokenizer, k=1)
    ids, before, output = rollout_of(model, tokenizer)
    read = {"thinking_states": output.thinking_states[:, :-1], "thinking_mask": output.thinking_mask[:, :-1]}
    for thoughts, found in ((read, [t.words[0] for t in trace.tokens]), ({}, [t.without for t in trace.tokens])):
        best = probabilities(model, ids[:, :-1], **thoughts)[before - 1 :].max(-1)
        assert [value for _, value in found] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert [word for word, _ in found] == [tokenizer.decode([index]) or f"[{index}]" for index in best.indices]


def test_gates_and_latent_shares_are_those_of_the_rollout(tokenizer):
    model, trace = trace_of("projection", tokenizer)
    ids, before, output = rollout_of(model, tokenizer)
    embeds = model.get_input_embeddings()(ids[:, before:])[0, :3]
    gate = model.model.thinking_residual_gate_r(embeds)
    a = torch.exp(model.model.thinking_residual_Lambda() * gate)
    assert [t.gate for t in trace.thoughts] == pytest.approx(gate.mean(-1).tolist(), abs=1e-6)
    shares = (1 - a * a).sqrt().mean(-1).tolist()
    assert [t.latent_share for t in trace.thoughts] == pytest.approx(shares, abs=1e-6)
    assert a.mean(-1).tolist() == pytest.approx(output.embeds_ratio[0, :3].tolist(), abs=1e-6)
    assert all(t.gate is t.latent_share is None and t.nearest == [] for t in trace.tokens[3:])


@pytest.mark.parametrize("mode", FUSING)
def test_the_answer_over_time_is_the_product_of_its_tokens_behind_each_prefix(mode, tokenizer):
    model, trace = trace_of(mode, tokenizer, answers=["12"], lead="= ")
    ids, before, output = rollout_of(model, tokenizer)
    lead, answer = (tokenizer(text)["input_ids"] for text in ("= ", "12"))
    for point, found in enumerate([trace.start, *(token.answer for token in trace.tokens)]):
        whole = torch.cat([ids[:, : before + point], torch.tensor([lead + answer])], 1)
        states, mask = (
            torch.cat(
                [each[:, :point], torch.zeros_like(each[:, :1]).expand(1, len(lead + answer), *each.shape[2:])], 1
            )
            for each in (output.thinking_states, output.thinking_mask)
        )
        probs = probabilities(model, whole, thinking_states=states, thinking_mask=mask)[-len(answer) - 1 : -1]
        assert found == pytest.approx(float(probs.gather(1, torch.tensor(answer)[:, None]).prod()), rel=1e-4)


def test_the_answer_is_not_measured_from_where_its_lead_turns_up(tokenizer):
    model = make_thinker("soft")
    token = thought_words(model, tokenizer, [PROMPT], max_new_tokens=6)[0].tokens[2].token
    trace = thought_words(model, tokenizer, [PROMPT], max_new_tokens=6, answers=["1"], lead=token)[0]
    text = [token.token for token in trace.tokens]
    assert [token.answer is None for token in trace.tokens] == [n >= text.index(token) for n in range(6)]


def test_the_share_on_a_target_is_the_probability_of_its_words_that_have_weight(tokenizer):
    _, trace = trace_of("soft", tokenizer, targets=[[{"a": 0.5, "b": 0.5, "c": 0.0, "d": None}]], k=97)
    first, *others = trace.thoughts
    words = dict(first.words)
    assert first.target_share == pytest.approx(words["a"] + words["b"], abs=1e-6)
    assert others and all(thought.target_share is None for thought in others)


def test_the_head_reads_from_a_hidden_state_what_it_read_there(tokenizer):
    _, trace = trace_of("coconut", tokenizer)
    for thought in trace.thoughts:
        assert [word for word, _ in thought.lens] == [word for word, _ in thought.words]


def test_a_projected_state_is_shown_as_it_is_fed(tokenizer, monkeypatch):
    model = make_thinker("codi")
    embedding = model.get_input_embeddings().weight.detach()
    monkeypatch.setattr(model.model, "thinking_state", lambda states, embeds: 3 * embedding[40].expand_as(states))
    trace = thought_words(model, tokenizer, [PROMPT], max_new_tokens=4, k=2)[0]
    best = int(model.lm_head(3 * embedding[40]).argmax())
    for thought in trace.thoughts:
        word, cosine = thought.nearest[0]
        assert word == tokenizer.decode([40]) and cosine == pytest.approx(1)
        assert thought.lens[0][0] == tokenizer.decode([best])


def test_a_mixture_is_near_to_its_words_and_a_pause_has_no_state(tokenizer):
    model, trace = trace_of("soft", tokenizer, k=97)
    embedding = model.get_input_embeddings().weight.detach()
    state = rollout_of(model, tokenizer)[2].thinking_states[0, 0]
    best = torch.cosine_similarity(state[None], embedding).max()
    assert trace.thoughts[0].nearest[0][1] == pytest.approx(float(best), abs=1e-6)
    assert trace.thoughts[0].lens == [] and trace.thoughts[0].latent_share == 1 and trace.thoughts[0].gate is None
    _, trace = trace_of("pause", tokenizer)
    assert all(thought.lens == thought.nearest == [] and thought.latent_share is None for thought in trace.thoughts)


def test_the_table_has_a_row_a_thought(tokenizer):
    _, trace = trace_of("codi", tokenizer, k=2)
    rows = thought_table(trace)
    assert [row[0] for row in rows] == ["1", "2", "3"] and {len(row) for row in rows} == {len(THOUGHT_COLUMNS)}


@pytest.mark.parametrize(
    "mode, kwargs, message",
    [
        ("none", {}, "does not think"),
        ("soft", {"k": 0}, "`k` must be at least 1"),
        ("soft", {"targets": []}, "one for each prompt"),
        ("soft", {"answers": ["1", "2"]}, "one for each prompt"),
        ("soft", {"answers": [""], "lead": ""}, "`answer` has no token"),
        ("soft", {"targets": [[{"two words": 1.0}]]}, "'two words' must be one token"),
    ],
)
def test_bad_input_is_named(mode, kwargs, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        trace_of(mode, tokenizer, **kwargs)


def test_no_completion_can_carry_a_script_into_its_page(tmp_path):
    words = [(text, 0.5) for text in HOSTILE[4:]]
    token = TracedToken(HOSTILE[4], True, words, words[1], 0.5, 0.5, 0.5, words, words, 0.5)
    trace = ThoughtTrace(HOSTILE[0], [token], HOSTILE[1], HOSTILE[1], HOSTILE[2], 0.25)
    page = write_thoughts_page([trace], tmp_path / "page.html", HOSTILE[2], HOSTILE[3], max_tokens=1).read_text()
    assert_harmless(page, shown=4)
    assert page.count("<script") == 0
