import pytest
from datasets import Dataset
from repository import ROOT

from hf_evidenceflow.tasks import build_prompt, build_system_prompt, chat_form, filter_long_prompts
from hf_evidenceflow.tasks.prompts import check_chat_template_kwargs, render_prompt


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}???{% endif %}"


@pytest.fixture
def chat_tokenizer(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    return tokenizer


def test_system_prompt_asks_for_reasoning_then_marker_then_answer():
    prompt = build_system_prompt("a number")
    assert prompt.index("step by step") < prompt.index("####") < prompt.index("a number")


def test_conversational_prompt_has_a_system_and_a_user_message():
    assert build_prompt(" 2 + 3? ", "Add.") == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "2 + 3?"},
    ]


def test_conversational_prompt_without_system_prompt_is_the_question_alone():
    assert build_prompt("2 + 3?") == [{"role": "user", "content": "2 + 3?"}]


@pytest.mark.parametrize(("system_prompt", "prompt"), [("Add.", "Add.\n\n2 + 3?\n"), (None, "2 + 3?\n")])
def test_plain_prompt_is_one_text(system_prompt, prompt):
    assert build_prompt(" 2 + 3? ", system_prompt, conversational=False) == prompt


def test_prompts_at_the_limit_are_kept_and_longer_ones_dropped_and_counted(tokenizer):
    dataset = Dataset.from_dict({"prompt": ["a" * 5, "b" * 6, "c" * 2, "d" * 7]})
    kept, dropped = filter_long_prompts(dataset, tokenizer, max_prompt_length=5)
    assert kept["prompt"] == ["a" * 5, "c" * 2] and dropped == 2


def test_chat_prompts_are_measured_with_template_and_generation_prompt(chat_tokenizer):
    prompts = [[{"role": "user", "content": "a" * length}] for length in (2, 3)]
    kept, dropped = filter_long_prompts(Dataset.from_dict({"prompt": prompts}), chat_tokenizer, max_prompt_length=5)
    assert kept["prompt"] == prompts[:1] and dropped == 1


def test_chat_template_gets_the_arguments_of_the_trainer(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(chat_tokenizer, "chat_template", TEMPLATE + "{{ more }}")
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]]})
    with pytest.raises(ValueError, match="the shortest has 9"):
        filter_long_prompts(dataset, chat_tokenizer, 5, chat_template_kwargs={"more": "xxxxx"})


@pytest.mark.parametrize("option, form", [(None, True), (False, False), (True, True)])
def test_a_chat_template_is_used_unless_said_otherwise(chat_tokenizer, option, form):
    assert chat_form(chat_tokenizer, option) is form


def test_without_a_chat_template_questions_are_text(tokenizer):
    assert chat_form(tokenizer) is False


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [REFUSES + TEMPLATE, DROPS])
def test_where_a_template_takes_no_system_message_the_instruction_stands_before_the_question(
    tokenizer, monkeypatch, template
):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prompt = build_prompt("2 + 3?", "Add.", chat_form(tokenizer))
    assert prompt == [{"role": "user", "content": "Add.\n\n2 + 3?"}]
    assert "Add." in render_prompt(prompt, tokenizer)[0]


def test_in_that_form_a_question_without_instruction_stands_alone():
    assert build_prompt("2 + 3?", None, "user") == [{"role": "user", "content": "2 + 3?"}]


def test_other_columns_stay_with_their_prompts(tokenizer):
    dataset = Dataset.from_dict({"prompt": ["aaaa", "b"], "answer": ["4", "1"]})
    assert filter_long_prompts(dataset, tokenizer, 3)[0].to_list() == [{"prompt": "b", "answer": "1"}]


def test_dropping_all_prompts_is_an_error(tokenizer):
    with pytest.raises(
        ValueError, match=r"All 2 prompts are longer than `max_prompt_length=1` tokens \(the shortest has 3\)"
    ):
        filter_long_prompts(Dataset.from_dict({"prompt": ["aaa", "bbbb"]}), tokenizer, 1)


def test_limit_below_one_token_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        filter_long_prompts(Dataset.from_dict({"prompt": ["a"]}), tokenizer, 0)


def test_nothing_else_renders_chats():
    """Training, checks and evaluations would not see the same prompts; a model card shows how to call the template."""
    paths = [path for folder in ("hf_evidenceflow", "patches", "recipes") for path in (ROOT / folder).rglob("*.py")]
    found = {path.name for path in paths if "apply_chat_template(" in path.read_text(encoding="utf-8")}
    assert found == {"prompts.py", "model_card.py"}


def test_an_argument_that_the_chat_template_does_not_read_is_named_with_the_nearest(chat_tokenizer, monkeypatch):
    monkeypatch.setattr(chat_tokenizer, "chat_template", "{{ messages[0].content }}{{ enable_thinking }}")
    check_chat_template_kwargs({"enable_thinking": False, "continue_final_message": False}, chat_tokenizer)
    with pytest.raises(
        ValueError, match="`enable_thinkin`, which the chat template does not read. Nearest: `enable_th"
    ):
        render_prompt([{"role": "user", "content": "Hi"}], chat_tokenizer, {"enable_thinkin": False})
    with pytest.raises(ValueError, match="has `budget`, which the chat template does not read. Leave it out"):
        check_chat_template_kwargs({"budget": 3}, chat_tokenizer)
