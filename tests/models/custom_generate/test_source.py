"""Folders for `generate(custom_generate=...)`, loaded by stock models, against this package's own generation."""

import ast
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_evidenceflow import load_thinking_model
from hf_evidenceflow.early_exit.self_speculation import SelfSpeculation
from hf_evidenceflow.models.custom_generate.source import METHODS, custom_generate_source, write_custom_generate


SETTINGS = {"thinking_answer_start": "####", "thinking_top_k": 5, "thinking_temperature": 0.7}
SWITCHES = {"thinking_min_latent": 2, "thinking_min_text": 3, "thinking_max_blocks": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    return {method: str(write_custom_generate(method, folder / method)) for method in METHODS}


@pytest.fixture(scope="module")
def model(plain_checkpoint):
    return AutoModelForCausalLM.from_pretrained(plain_checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def inputs(tokenizer):
    return tokenizer(["12 + 7 =", "How many eggs?"], return_tensors="pt", padding=True)


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "top_k": 20}, {"use_cache": False}])
@pytest.mark.parametrize(
    ("method", "mode", "settings"), [("soft_thinking", "soft", SETTINGS), ("swireasoning", "swi", SETTINGS | SWITCHES)]
)
def test_thoughts_are_those_of_a_thinking_model(
    folders, model, inputs, tokenizer, plain_checkpoint, method, mode, settings, sampling
):
    thinking = load_thinking_model(plain_checkpoint, thinking_mode=mode, dtype=torch.float32, **settings).eval()
    arguments = {**inputs, "max_new_tokens": 12, "tokenizer": tokenizer, "eos_token_id": None, **sampling}
    torch.manual_seed(0)
    expected = thinking.generate(**arguments)
    torch.manual_seed(0)
    found = model.generate(**arguments, **settings, custom_generate=folders[method], trust_remote_code=True)
    assert found.tolist() == expected.tolist()
    torch.manual_seed(0)
    assert model.generate(**arguments).tolist() != expected.tolist()  # and nothing is left on the model


def test_self_speculation_writes_the_tokens_of_this_packages_own(folders, model, tokenizer):
    arguments = {**tokenizer(["12 + 7 ="], return_tensors="pt"), "max_new_tokens": 9, "do_sample": False}
    expected = model.generate(**arguments, custom_generate=SelfSpeculation(model, depth=1))
    found = model.generate(**arguments, custom_generate=folders["self_speculation"], trust_remote_code=True, depth=1)
    assert found.tolist() == expected.tolist() == model.generate(**arguments).tolist()


def test_thinking_that_ends_by_a_text_needs_a_tokenizer(folders, model, inputs):
    with pytest.raises(ValueError, match=r"`thinking_answer_start='</think>'` needs a tokenizer"):
        model.generate(**inputs, custom_generate=folders["soft_thinking"], trust_remote_code=True)


@pytest.mark.parametrize("settings", [{"thinking_min_latent": -1}, {"thinking_max_blocks": 1.5}], ids=str)
def test_blocks_are_whole_numbers(folders, model, inputs, tokenizer, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number of at least"):
        model.generate(
            **inputs, **settings, tokenizer=tokenizer, custom_generate=folders["swireasoning"], trust_remote_code=True
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_stop_string_ends_the_text_as_in_stock_generate(folders, model, tokenizer, method):
    arguments = {**tokenizer(["12 + 7 ="], return_tensors="pt"), "max_new_tokens": 9, "do_sample": False}
    way = {"custom_generate": folders[method], "trust_remote_code": True, "tokenizer": tokenizer}
    way |= {"depth": 1} if method == "self_speculation" else {"thinking_answer_start": "####"}
    whole = model.generate(**arguments, **way)[0]
    stop = tokenizer.decode(whole[-5])
    stopped = model.generate(**arguments, **way, stop_strings=[stop])[0]
    assert len(stopped) < len(whole) and stopped.tolist() == whole[: len(stopped)].tolist()
    assert tokenizer.decode(stopped).endswith(stop)


def test_beams_are_refused(folders, model, inputs):
    with pytest.raises(ValueError, match=r"no place for the thoughts .*`num_beams=2`"):
        model.generate(
            **inputs,
            custom_generate=folders["soft_thinking"],
            trust_remote_code=True,
            thinking_answer_start=None,
            num_beams=2,
        )


@pytest.mark.parametrize("method", METHODS)
def test_the_code_stands_alone(method):
    """It defines no name twice, and imports what its requirements name."""
    tree = ast.parse(custom_generate_source(method))
    named = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assigned = [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]
    assert max(Counter([*named, *assigned]).values()) == 1 and "generate" in named
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in imports
    }
    assert roots - set(sys.stdlib_module_names) <= {"torch", "transformers", "accelerate"}


def test_an_unknown_method_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`method` must be one of soft_thinking"):
        write_custom_generate("soft", tmp_path)
