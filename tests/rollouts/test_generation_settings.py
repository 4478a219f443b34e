"""A configuration of ours takes nothing over from the model's generation config."""

import ast

import pytest
import torch
from hostile_generation import HOSTILE, make_hostile
from plain_models import make_plain
from repository import ROOT
from transformers import GenerationConfig

from hf_evidenceflow.rollouts.generation_settings import own_generation_config


TOKEN_IDS = {"eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"}
FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.5}], ids=["greedy", "sampling"])
def test_no_field_of_the_models_config_is_inherited(settings):
    model = make_plain()
    prepared, _ = model._prepare_generation_config(own_generation_config(model, **settings))
    for name in set(FIELDS) - TOKEN_IDS - {"transformers_version"}:
        setattr(model.generation_config, name, "of the model")
    model.generation_config.an_entry_of_ones_own = "of the model"
    hostile, _ = model._prepare_generation_config(own_generation_config(model, **settings))
    assert vars(hostile) == vars(prepared)


def test_the_hostile_config_of_the_tests_changes_tokens_where_it_is_inherited():
    """Else the tests that use it would show nothing."""
    for name in ("min_p", "no_repeat_ngram_size", "suppress_tokens", "max_time"):
        model = make_plain()
        tokens = []
        for value in (None, HOSTILE[name]):
            setattr(model.generation_config, name, value)
            torch.manual_seed(0)
            tokens.append(
                model.generate(torch.tensor([[2, 5, 9]]), do_sample=True, top_k=0, max_new_tokens=19).tolist()
            )
        assert tokens[0] != tokens[1], name


def test_special_tokens_are_the_models_unless_they_are_given():
    model = make_plain()
    model.generation_config.eos_token_id = [1, 7]
    assert own_generation_config(model).eos_token_id == [1, 7]
    none, _ = model._prepare_generation_config(own_generation_config(model, eos_token_id=None))
    assert none.eos_token_id is None


def test_generate_samples_from_all_tokens_with_a_hostile_model():
    tokens = []
    for model in (make_plain(), make_hostile(make_plain())):
        torch.manual_seed(0)
        config = own_generation_config(model, do_sample=True, max_new_tokens=19)
        tokens.append(model.generate(torch.tensor([[2, 5, 9]]), generation_config=config).tolist())
    assert tokens[0] == tokens[1]


# Made-up models without a generation config of their own, and vLLM's own settings
OTHERS = {"hf_evidenceflow/models/family_check.py", "hf_evidenceflow/integrations/vllm/rollouts.py"}
OTHERS |= {"hf_evidenceflow/integrations/vllm/server_rollouts.py"}


def test_each_call_of_generate_brings_its_configuration():
    for path in (path for room in ("hf_evidenceflow", "recipes") for path in (ROOT / room).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "generate":
                given = {keyword.arg for keyword in call.keywords}  # `None` for `**settings`
                name = path.relative_to(ROOT).as_posix()
                assert given & {"generation_config", None} or name in OTHERS, f"{name}:{call.lineno}"
