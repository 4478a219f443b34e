import importlib
import json

from repository import RECIPES
from transformers import AutoTokenizer


def test_a_tokenizer_is_trained_on_generated_text(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    recipe = importlib.import_module("train_tokenizer")
    arguments = ["--vocab_size", "300", "--documents", "30", "--processes", "1", "--tie_rule", "greatest"]
    recipe.main(["--output_dir", str(tmp_path), *arguments])
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 300
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
