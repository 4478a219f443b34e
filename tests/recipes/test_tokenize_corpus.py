import importlib
import json

import pytest
from repository import RECIPES

from hf_evidenceflow.recipes import layer_report


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("tokenize_corpus"), importlib.import_module("pretrain_clm")


def encode(recipe, folder, *arguments):
    common = ["--documents", "40", "--processes", "1", "--shard_bytes", "2000"]
    return recipe.main(["--output_dir", str(folder), *common, *arguments])


def pretrain(recipe, folder, tokenizer, *arguments):
    config = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {"model_type": "llama", "config_overrides": json.dumps(config), "tokenizer_name_or_path": tokenizer}
    options |= {"block_size": 16, "max_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
    options |= {"output_dir": folder / "model", "train_tokens": folder / "train"}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return recipe.main([*given, *arguments])


def test_a_model_is_trained_on_encoded_shards(recipes, tmp_path):
    encoding, training = recipes
    corpus = encode(encoding, tmp_path / "train")
    tokenizer = str(tmp_path / "train" / "tokenizer")
    encode(encoding, tmp_path / "validation", "--tokenizer_name_or_path", tokenizer, "--seed", "1")
    assert json.loads((tmp_path / "train" / "run.json").read_text())["metrics"]["tokens"] == len(corpus)
    trainer = pretrain(training, tmp_path, tokenizer, "--validation_tokens", str(tmp_path / "validation"))
    assert len(corpus.shards) > 2 and len(trainer.train_dataset) == len(corpus) // 16
    assert trainer.state.global_step == 2

    # The report on its layers reads the same held-out rows
    (batch,) = layer_report.validation_batches(
        tmp_path / "model", trainer.processing_class, layer_report.LayerReportArguments("", "", "", max_rows=3), {}
    )
    assert batch["input_ids"].tolist() == [trainer.eval_dataset[row]["input_ids"].tolist() for row in range(3)]


def test_shards_of_another_tokenizer_are_refused(recipes, tmp_path):
    encoding, training = recipes
    for seed, name in enumerate(("train", "other")):
        encode(encoding, tmp_path / name, "--seed", str(seed))
    with pytest.raises(ValueError, match="made with another tokenizer than this one"):
        tokenizer = str(tmp_path / "other" / "tokenizer")
        pretrain(training, tmp_path, tokenizer, "--validation_tokens", str(tmp_path / "train"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "`train_tokens` and `validation_tokens` go together"),
        (["--validation_tokens", "x", "--train_file", "y"], "leave out `train_file`"),
        (["--validation_tokens", "x", "--packing", "documents"], "with `packing=blocks`"),
    ],
)
def test_options_that_do_not_go_with_shards_are_refused(recipes, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrain(recipes[1], tmp_path, "x", *arguments)
