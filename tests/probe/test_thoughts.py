"""What thoughts say, against the model's own forward pass and against states that are known."""

import pytest
import torch
from hostile_text import HOSTILE, assert_harmless
from probe_models import tiny_model
from thinking_models import make_thinker

from hf_evidenceflow.probe.page import write_probe_page
from hf_evidenceflow.probe.probe import EvidenceProbe
from hf_evidenceflow.probe.thoughts import THOUGHT_COLUMNS, Thought, ThoughtTrace, thought_table, thought_words


PROMPT = "2 cats"


def trace_of(mode, tokenizer, **kwargs):
    model = make_thinker(mode)
    return model, thought_words(model, tokenizer, [PROMPT], max_new_tokens=6, **kwargs)[0]


def test_a_fixed_number_of_thoughts_comes_before_the_text(tokenizer):
    _, trace = trace_of("coconut", tokenizer)
    assert trace.prompt == PROMPT and len(trace.thoughts) == 3
    assert {thought.token for thought in trace.thoughts} == {tokenizer.decode([29])}


@pytest.mark.parametrize("mode", ["soft", "pause", "coconut"])
def test_the_first_thoughts_words_are_those_after_the_prompt(mode, tokenizer):
    model, trace = trace_of(mode, tokenizer, k=4)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, -1].float().softmax(-1).topk(4)
    words = trace.thoughts[0].words
    assert [value for _, value in words] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert words[0][0] == tokenizer.decode([int(best.indices[0])])


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


@pytest.mark.parametrize("mode", ["soft", "pause"])
def test_a_mixture_and_a_pause_have_no_state_but_their_words(mode, tokenizer):
    _, trace = trace_of(mode, tokenizer)
    assert all(thought.lens == thought.nearest == [] for thought in trace.thoughts)


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
        ("soft", {"targets": [[{"two words": 1.0}]]}, "'two words' must be one token"),
    ],
)
def test_bad_input_is_named(mode, kwargs, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        trace_of(mode, tokenizer, **kwargs)


def test_no_thought_can_carry_a_script_into_its_page(tokenizer, tmp_path):
    result = EvidenceProbe(tiny_model(), tokenizer).probe("2 $ cats")
    words = [(text, 0.5) for text in HOSTILE[2:]]
    trace = ThoughtTrace(HOSTILE[0], [Thought(HOSTILE[2], words, 0.5, words, words)], HOSTILE[1])
    page = write_probe_page(result, tmp_path / "page.html", "m", thoughts=[trace]).read_text()
    assert_harmless(page, shown=2)
