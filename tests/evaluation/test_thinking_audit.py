"""The audit on models whose thinking is known: it alone gives the answer, or it does nothing."""

import pytest
import torch
from tiny_models import TINY

from hf_evidenceflow import ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.evaluation.thinking_audit import audit_generation, audit_thinking


WORDS = "abcdefghijk"
PLACEHOLDER = 60
KINDS = ["off", "zero", "shuffle", "mean", "swap", "direction"]


def exact(completions, answer):
    return [float(text == gold) for text, gold in zip(completions, answer)]


def make_model(**fields):
    torch.manual_seed(3)
    fields = {"thinking_mode": "soft", "thinking_count": 1, "initializer_range": 0.5, **fields}
    return ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY, **fields)).eval()


def without_attention(model):
    """What follows a position depends on its input alone."""
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return model


def rows_of(model, tokenizer, new_tokens, words=WORDS):
    """Problems whose right answers are what the model says, thinking."""
    found = [{"prompt": word, "answer": ""} for word in words]
    audit = audit_thinking(model, tokenizer, found, exact, max_new_tokens=new_tokens, interventions=())
    return [row | {"answer": each.text} for row, each in zip(found, audit.completions["on"])]


@pytest.fixture(scope="module")
def thinker():
    """The second token comes from the state of the first, whose own token is always the same."""
    return without_attention(make_model(thinking_token_policy="placeholder", thinking_placeholder_id=PLACEHOLDER))


@pytest.fixture(scope="module")
def found_out(thinker, tokenizer):
    rows = rows_of(thinker, tokenizer, 2)
    assert len({row["answer"] for row in rows}) > 5
    return audit_thinking(thinker, tokenizer, rows, exact, max_new_tokens=2, batch_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_answer_comes_from_its_state_is_found_out(found_out, kind):
    summary = found_out.summary()
    assert summary["on"]["accuracy"]["value"] == 1
    assert summary[kind]["accuracy"]["value"] < 0.5
    assert summary[kind]["difference"]["low"] > 0.2 and summary[kind]["difference"]["p_holm"] < 0.05
    assert summary[kind]["changed"] > 0.5
    assert found_out.finding() == "The answers come from the states: with those of other problems they are worse."


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_whose_states_do_nothing_shows_nothing(tokenizer, kind):
    model = make_model(thinking_mode="projection", thinking_count=3)
    with torch.no_grad():
        model.model.thinking_residual_Lambda.Lambda.fill_(100.0)  # a token's embedding is multiplied by 1
        model.model.thinking_residual_gate_i.bias.fill_(-1e4)  # and its state by 0
    rows = rows_of(model, tokenizer, 5)
    audit = audit_thinking(model, tokenizer, rows, exact, max_new_tokens=5, interventions=(kind,))
    row = audit.summary()[kind]
    assert row["accuracy"]["value"] == 1 and row["changed"] == 0
    assert (row["difference"]["low"], row["difference"]["high"], row["difference"]["p_holm"]) == (0, 0, 1)
    assert audit.finding().startswith("No sign that the answers need the states.")


def lengths_only(model):
    """What follows a position depends on the norm of its input alone."""
    steps = torch.linspace(1, 60, TINY["hidden_size"])
    model.model.layers[0].register_forward_pre_hook(
        lambda layer, inputs: ((inputs[0].norm(dim=-1, keepdim=True) * steps).sin(), *inputs[1:])
    )
    return model


def test_a_model_that_uses_only_the_norm_of_its_states_is_found_out(tokenizer):
    policy = {"thinking_token_policy": "placeholder", "thinking_placeholder_id": PLACEHOLDER}
    model = lengths_only(without_attention(make_model(**policy)))
    rows = rows_of(model, tokenizer, 2, words="abcdefghijklmnopqrstuvwxyz0123456789")
    audit = audit_thinking(model, tokenizer, rows, exact, max_new_tokens=2)
    assert audit.scores["on"] == audit.scores["direction"] == [1.0] * len(rows)
    assert audit.costs("swap") and audit.costs("zero")
    assert audit.finding().startswith("The answers come from the norms of the states")


def letters(generate, **options):
    """Audit of a function on problems whose answer is their prompt."""
    return audit_generation(generate, [{"prompt": word, "answer": word} for word in WORDS], exact, **options)


def test_a_function_that_generates_is_audited_as_it_intervenes():
    seen = []

    def generate(prompts, intervention):
        seen.append((len(prompts), intervention))
        return ["0" if intervention in ("swap", "zero") else prompt for prompt in prompts]

    audit = letters(generate, interventions=("swap", "zero", "mean"), batch_size=5)
    assert seen == [(size, kind) for kind in (None, "swap", "zero", "mean") for size in (6, 5)]
    assert [sum(scores) for scores in audit.scores.values()] == [11, 0, 0, 11]
    assert audit.finding().startswith("The answers come from the states: with those of other problems they are worse.")


def test_a_function_that_loses_a_prompt_is_refused():
    with pytest.raises(ValueError, match="must return 11 texts, one a prompt, got 10"):
        letters(lambda prompts, kind: prompts[1:])


@pytest.mark.parametrize(
    ("costly", "finding"),
    [
        (("swap", "direction"), "come from the states"),
        (("swap",), "come from the norms"),
        (("zero",), "need a state, but not their own"),
        (("mean",), "nothing else does"),
        ((), "No sign"),
    ],
)
def test_the_finding_follows_from_what_costs(costly, finding):
    assert finding in letters(lambda prompts, kind: [""] * 11 if kind in costly else prompts).finding()


@pytest.mark.parametrize(("right", "finding"), [("", "better"), ("abcdefghij", "as good")])
def test_the_finding_says_how_good_answers_are_without_thinking(right, finding):
    audit = letters(lambda prompts, kind: [p if kind == "off" or p in right else "" for p in prompts])
    assert audit.finding().partition(" Costs")[0].endswith(f"Without thinking they are {finding}.")


def test_a_difference_that_few_problems_cannot_show_is_named_with_its_interval():
    audit = letters(lambda prompts, kind: prompts if kind != "zero" else ["", *prompts[1:]])
    assert not audit.costs("zero")
    assert audit.summary()["zero"]["difference"]["high"] == pytest.approx(3 / 11)
    # With no change in 11 problems, 0.285 of all may change: the other kinds show no less
    assert "zero" in audit.finding() and "(at most 0.285 of accuracy)" in audit.finding()


def test_all_runs_have_the_same_budget_of_tokens(found_out):
    summary = found_out.summary()
    assert {row["mean_tokens"] for row in summary.values()} == {2}
    assert [row["thinking_tokens"] for row in summary.values()] == [1, 0, 1, 1, 1, 1, 1]


def test_completions_are_in_the_order_of_the_problems(found_out):
    assert [completion.prompt for completion in found_out.completions["shuffle"]] == list(WORDS)


def test_the_table_has_a_row_for_each_intervention(found_out):
    lines = found_out.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["on", *KINDS]
    assert lines[2].split("|")[2].strip() == "1.0000"


def test_no_problem_is_left_alone_in_a_batch(thinker, tokenizer):
    sizes, rows = [], [{"prompt": word, "answer": ""} for word in WORDS[:7]]
    settings = {"max_new_tokens": 1, "interventions": ("shuffle",), "on_batch": sizes.append}
    audit_thinking(thinker, tokenizer, rows, exact, batch_size=2, **settings)
    assert sizes == [4, 3] * 2


def test_a_model_that_does_not_think_is_refused(tokenizer):
    model = make_model(thinking_mode="none")
    with pytest.raises(ValueError, match="ThinkingQwen2ForCausalLM does not think"):
        audit_thinking(model, tokenizer, [{"prompt": "a", "answer": "b"}] * 2, exact, max_new_tokens=2)


def test_a_single_problem_is_refused(thinker, tokenizer):
    with pytest.raises(ValueError, match="at least 2 problems"):
        audit_thinking(thinker, tokenizer, [{"prompt": "a", "answer": "b"}], exact, max_new_tokens=2)
