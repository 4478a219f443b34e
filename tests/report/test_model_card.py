"""Model cards; those of trained models are tested with their trainers."""

from hf_evidenceflow.report.model_card import generation_snippet


def test_the_snippet_renders_its_prompt_as_in_training():
    loader = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(name)"
    chat = [{"role": "user", "content": "How much is 2 + 3?"}]
    snippet = generation_snippet("model", chat, loader, True, False, {"enable_thinking": False})
    assert "add_generation_prompt=True, enable_thinking=False)" in snippet
    compile(snippet, "snippet", "exec")
