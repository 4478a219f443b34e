"""Converted checkpoints of the published TinySeek compute what the published code computes."""

import json
import pathlib
import pickle
import unicodedata

import pytest
import torch
from published_tinyseek import published_ids, reference_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evidenceflow.models.tinyseek.convert_tinyseek import (
    convert_original_checkpoint,
    convert_original_config,
    convert_original_vocabulary,
    main,
)


TOKENS = ["[PAD]", "<|im_end|>", "[MASK]", "[UNK]", *"0123456789.%[]?,-", "MASK", "the", "The", "caf", "na", "ve"]
VOCABULARY = {token: index for index, token in enumerate([*TOKENS, *"猫坐了。é"])}
TEXTS = [
    "The cat sat on the mat.",
    "猫坐了 the 猫。",
    "3.14% of 2.5, 100% and 7 - 12.",
    "12.5.3%% .5 5. 1.%",
    "[MASK] and [PAD]?",
    "café naïve café",
    "the_the _ __the 猫_猫",
    "<|im_end|> the <| im_end |>",
    "The猫3the猫 4%猫",
    "日本語 ひらがな ٣ Ω",
    "line\nbreak\ttab\u3000wide",
    "",
]


@pytest.fixture(scope="module")
def reference():
    return reference_model()


@pytest.fixture(scope="module")
def converted(reference):
    model, config = reference
    return convert_original_checkpoint(model.state_dict(), config)


@pytest.fixture(scope="module")
def ids(reference):
    return torch.randint(1, reference[1]["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def files(reference, tmp_path):
    """Published files, and the arguments that convert them."""
    model, config = reference
    torch.save(model.state_dict(), tmp_path / "weights.pkl")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY, ensure_ascii=False), encoding="utf-8")
    return {
        "--checkpoint": tmp_path / "weights.pkl",
        "--config": tmp_path / "config.json",
        "--vocab": tmp_path / "vocab.json",
        "--output": tmp_path / "out",
    }


def run(files):
    return main([str(part) for pair in files.items() for part in pair])


@torch.no_grad()
def test_logits_are_the_published_ones(reference, converted, ids):
    logits, _ = reference[0](ids)
    assert logits.std() > 0.5
    torch.testing.assert_close(converted(ids).logits, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"n_layer": 1, "n_head": 7}, {"d_r": 2, "keep": 1}, {"shared_experts": 0, "keep": 7}, {"ro_theta": 10_000}],
    ids=str,
)
@torch.no_grad()
def test_other_sizes_convert_as_well(changes):
    model, config = reference_model(1, **changes)
    ids = torch.randint(1, config["vocab_size"], (3, 6))
    logits = convert_original_checkpoint(model.state_dict(), config)(ids).logits
    torch.testing.assert_close(logits, model(ids)[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_logits_before_right_padding_are_the_published_ones(reference, converted, ids):
    padded = ids.clone()
    padded[0, 6:], padded[1, 9:] = 0, 0
    mask = (padded != 0).long()
    logits = converted(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask == 1], reference[0](padded)[0][mask == 1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_cross_entropy_is_the_published_one(reference, converted, ids):
    output = converted(ids, labels=ids)
    logits, _ = reference[0](ids)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    own = output.loss - converted.config.router_aux_loss_coef * output.aux_loss
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_balance_is_the_published_one_summed_over_the_loops(reference, converted, ids):
    _, balance = reference[0](ids)
    assert balance > 0.1
    torch.testing.assert_close(converted(ids, labels=ids).aux_loss, balance, rtol=0, atol=1e-5)


def test_noise_of_the_router_is_the_published_one(reference, converted, ids):
    model, config = reference
    trained = convert_original_checkpoint(model.state_dict(), {**config, "dropout": 0.0}).train()
    torch.manual_seed(4)
    logits, _ = model(ids, noise=True)
    torch.manual_seed(4)
    noisy = trained(ids).logits
    assert (noisy - converted(ids).logits).abs().max() > 0.1
    torch.testing.assert_close(noisy, logits, rtol=0, atol=1e-4)


def test_gradient_of_the_cross_entropy_is_the_published_one(ids):
    model, config = reference_model(alpha=0)
    converted = convert_original_checkpoint(model.state_dict(), config).double()  # in fp32 rounding hides much
    logits, _ = model.double()(ids)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    converted(ids, labels=ids).loss.backward()
    block, old = converted.model.layers[0], model.synonymous_layer
    pairs = {
        "embeddings": (converted.model.embed_tokens.weight.grad, model.tokenEmbedding.tokenEmbedding.weight),
        "router": (block.mlp.gate.weight.grad.mT, old.moe_ffn.w_g),
        "expert": (block.mlp.experts.down_proj.grad[2], old.moe_ffn.experts[2].fc2.weight),
        "output": (block.self_attn.o_proj.weight.grad, old.mla.w_o.weight),
        "rotary query": (block.self_attn.q_rope_proj.weight.grad, old.mla.w_qr.weight),
    }
    for name, (gradient, weight) in pairs.items():
        # The loss is computed in fp32
        gap = (gradient - weight.grad).norm() / weight.grad.norm()
        assert gap < 1e-5, f"{name}: relative error {gap:.2g}"


def test_fields_without_a_published_key_are_as_published():
    config = convert_original_config(reference_model()[1])
    assert (config.num_unique_layers, config.norm_position, config.hidden_act) == (1, "post", "relu")
    assert config.lm_head_bias and not config.tie_word_embeddings


@pytest.fixture(scope="module")
def tokenizer():
    return convert_original_vocabulary(VOCABULARY)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_published_pattern(tokenizer, text):
    assert tokenizer(text)["input_ids"] == published_ids(text, VOCABULARY)


def test_each_character_is_kept_or_dropped_as_published(tokenizer):
    wrong = [
        char
        for char in map(chr, [*range(0xD800), *range(0xE000, 0x10000)])
        # A character that Python does not know yet may be a letter to the tokenizer
        if unicodedata.category(char) != "Cn" and tokenizer(char)["input_ids"] != published_ids(char, VOCABULARY)
    ]
    assert not wrong, f"{len(wrong)} characters, such as {wrong[:9]}"


def test_decoding_joins_without_spaces(tokenizer):
    assert tokenizer.decode(tokenizer("The 猫坐 3.5%")["input_ids"]) == "The猫坐3.5%"


def test_special_tokens_have_their_published_ids(tokenizer):
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3] and len(tokenizer) == len(VOCABULARY)


@torch.no_grad()
def test_the_written_folder_loads_with_equal_logits_and_ids(reference, files, ids, capsys):
    assert run(files) == 0
    assert "parameters" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(files["--output"]).eval()
    torch.testing.assert_close(model(ids).logits, reference[0](ids)[0], rtol=0, atol=1e-4)
    loaded = AutoTokenizer.from_pretrained(files["--output"])
    assert [loaded(text)["input_ids"] for text in TEXTS] == [published_ids(text, VOCABULARY) for text in TEXTS]


def test_without_a_vocabulary_no_tokenizer_is_written(files):
    del files["--vocab"]
    assert run(files) == 0
    assert not list(files["--output"].glob("tokenizer*"))


def change_weights(files, change):
    weights = torch.load(files["--checkpoint"], weights_only=True)
    change(weights)
    torch.save(weights, files["--checkpoint"])


def change_config(files, change):
    config = json.loads(files["--config"].read_text())
    change(config)
    files["--config"].write_text(json.dumps(config))


class Anything:
    """Some object in a pickle."""


BREAKS = {
    "missing weight": (lambda f: change_weights(f, lambda w: w.pop("fc.bias")), "fc.bias"),
    "unknown weight": (lambda f: change_weights(f, lambda w: w.update(extra=torch.ones(1))), "extra"),
    "wrong shape": (
        lambda f: change_weights(f, lambda w: w.update({"synonymous_layer.mla.w_kr.weight": torch.ones(4, 20)})),
        "`synonymous_layer.mla.w_kr.weight` has shape (4, 20), the configuration asks for (4, 21)",
    ),
    "unknown key": (lambda f: change_config(f, lambda c: c.update(n_heads=c.pop("n_head"))), "['n_head']"),
    "value out of range": (lambda f: change_config(f, lambda c: c.update(keep=8)), "got 8"),
    "value of a wrong type": (lambda f: change_config(f, lambda c: c.update(keep="3")), "keep"),
    "width of a wrong type": (lambda f: change_config(f, lambda c: c.update(d_model="21")), "d_model"),
    "truncated checkpoint": (
        lambda f: f["--checkpoint"].write_bytes(f["--checkpoint"].read_bytes()[:-900]),
        "weights.pkl",
    ),
    "empty checkpoint": (lambda f: f["--checkpoint"].write_bytes(b""), "weights.pkl"),
    "pickled object": (lambda f: torch.save(Anything(), f["--checkpoint"]), "weights.pkl"),
    "plain pickle": (lambda f: f["--checkpoint"].write_bytes(pickle.dumps({"a": Anything()})), "weights.pkl"),
    "no state dict": (lambda f: torch.save([torch.ones(1)], f["--checkpoint"]), "weights.pkl"),
    "whole training state": (lambda f: torch.save({"epoch": 3}, f["--checkpoint"]), "weights.pkl"),
    "broken configuration": (lambda f: f["--config"].write_text('{"d_model": '), "config.json"),
    "configuration that is a list": (lambda f: f["--config"].write_text("[1]"), "config.json"),
    "broken vocabulary": (lambda f: f["--vocab"].write_text("{'a': 1}"), "vocab.json"),
    "vocabulary without [PAD]": (lambda f: f["--vocab"].write_text('{"[UNK]": 3}'), "[PAD]"),
    "two tokens of one id": (lambda f: f["--vocab"].write_text(json.dumps({**VOCABULARY, "x": 3})), "different"),
    "vocabulary that is too large": (
        lambda f: f["--vocab"].write_text(json.dumps({**VOCABULARY, **{f"t{i}": 100 + i for i in range(30)}})),
        "vocab.json",
    ),
    "missing checkpoint": (lambda f: f["--checkpoint"].unlink(), "weights.pkl"),
    "missing configuration": (lambda f: f["--config"].unlink(), "config.json"),
}


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_no_code_of_a_checkpoint_is_run(files, tmp_path):
    torch.save({"fc.bias": Touch(tmp_path / "was_run")}, files["--checkpoint"])
    assert run(files) == 1
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("case", BREAKS)
def test_bad_files_are_an_error_that_names_what_is_wrong(files, capsys, case):
    break_, named = BREAKS[case]
    break_(files)
    assert run(files) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error
    assert not files["--output"].exists()
