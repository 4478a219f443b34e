"""The recipes that look at a model and at a run, in this process and at the smallest size."""

import importlib
import json

import pytest
from hostile_text import HOSTILE, assert_harmless
from peft import LoraConfig, get_peft_model
from thinking_models import make_thinker
from transformers import AutoModelForCausalLM

from hf_evidenceflow.report.run_metrics import run_metrics
from hf_evidenceflow.report.run_record import read_run_record


@pytest.fixture(scope="module")
def probe():
    return importlib.import_module("hf_evidenceflow.recipes.probe")


@pytest.fixture(scope="module")
def plot_run():
    return importlib.import_module("hf_evidenceflow.recipes.plot_run")


@pytest.fixture
def no_pictures(probe, monkeypatch):
    monkeypatch.setattr(probe, "HEAT_MAPS", ())


@pytest.fixture
def thinker_folder(tokenizer, tmp_path):
    model = make_thinker("soft").float()
    model.save_pretrained(tmp_path / "thinker")
    tokenizer.save_pretrained(tmp_path / "thinker")
    return str(tmp_path / "thinker")


@pytest.mark.slow
def test_the_probe_writes_tables_pictures_page_and_record(probe, plain_checkpoint, tmp_path, capsys):
    argv = ["--model_name_or_path", plain_checkpoint, "--output_dir", str(tmp_path / "out")]
    result = probe.main([*argv, "--text", "2 cats", "--text", "a dog"])
    out = tmp_path / "out"
    assert {path.suffix for path in out.iterdir()} == {".parquet", ".csv", ".png", ".html", ".json", ""}
    assert len(list((out / "heat_maps").glob("*.png"))) == len(probe.HEAT_MAPS)
    record = read_run_record(out)
    assert record["status"] == "finished" and record["texts"] == ["2 cats", "a dog"] and record["tokens"] == 9
    assert len(result["layers"]) == 4 and "index.html" in capsys.readouterr().out


def test_a_default_text_and_an_adapter_without_tokenizer(probe, plain_checkpoint, tmp_path, no_pictures):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(plain_checkpoint), LoraConfig(r=2))
    adapted.save_pretrained(tmp_path / "adapter")
    probe.main(["--model_name_or_path", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "out")])
    assert read_run_record(tmp_path / "out")["texts"] == [probe.DEFAULT_TEXT]


def test_arguments_and_text_can_come_from_files(probe, plain_checkpoint, tmp_path, no_pictures):
    (tmp_path / "story.txt").write_text("a dog ran\n")
    (tmp_path / "s.yaml").write_text(f"text_file: {tmp_path / 'story.txt'}\nmax_length: 5\n")
    argv = ["--model_name_or_path", plain_checkpoint, "--output_dir", str(tmp_path / "out")]
    probe.main([*argv, "--config", str(tmp_path / "s.yaml")])
    record = read_run_record(tmp_path / "out")
    assert record["texts"] == ["a dog ran"] and record["tokens"] == 4


def test_thoughts_of_a_thinking_model_are_shown_with_their_targets(probe, thinker_folder, tmp_path, no_pictures):
    row = {"prompt": "2 cats", "answer": "2", "thought_targets": [{"a": 1.0}, {"b": 0.5, "c": 0.5}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    argv = ["--model_name_or_path", thinker_folder, "--output_dir", str(tmp_path / "out"), "--max_new_tokens", "5"]
    probe.main([*argv, "--prompt_file", str(tmp_path / "rows.jsonl")])
    (trace,) = json.loads((tmp_path / "out" / "thoughts.json").read_text())
    assert [token["target_share"] is None for token in trace["tokens"]] == [False, False, True, True, True]
    assert trace["start"] > 0 and trace["answer"] == "2"
    assert "The right answer over time" in (tmp_path / "out" / "thoughts.html").read_text()
    assert read_run_record(tmp_path / "out")["texts"] == ["2 cats"]


@pytest.mark.parametrize(
    "extra, error, message",
    [
        (["--text_file", "nowhere.txt"], FileNotFoundError, r"nowhere\.txt"),
        (["--text", "a", "--text_file", "b.txt"], ValueError, "not both"),
        (["--text", "a"], ValueError, "1 token"),
        (["--prompt", "a", "--prompt_file", "b.jsonl"], ValueError, "not both"),
        (["--prompt_file", "nowhere.jsonl"], FileNotFoundError, r"nowhere\.jsonl"),
        (["--prompt", "a b"], ValueError, "does not think"),
        (["--answer", "a"], ValueError, "one for each `prompt`"),
        (["--thoughts_only"], ValueError, "completions of prompts"),
        (["--model_name_or_path", "./nowhere"], FileNotFoundError, "no folder .*nowhere"),
        (["--layer_modules", "blocks"], ValueError, "'blocks'"),
    ],
)
def test_bad_input_is_named(probe, plain_checkpoint, tmp_path, extra, error, message):
    with pytest.raises(error, match=message):
        probe.main(["--model_name_or_path", plain_checkpoint, "--output_dir", str(tmp_path / "out"), *extra])


@pytest.fixture
def logs(tmp_path):
    rows = [{"step": step, "loss": 4 - step / 20, "learning_rate": 0.1} for step in range(1, 31)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    supervised = [
        row | {"loss": row["loss"] + 1, "evidence_flow/model_loss": row["loss"], "evidence_flow/layer_0": 1.0}
        for row in rows
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": supervised}))
    return ["--runs", f"plain={tmp_path / 'plain.jsonl'}", f"<ef>={tmp_path / 'run'}"]


def test_the_figures_of_two_runs_are_written(plot_run, logs, tmp_path):
    out = tmp_path / "out"
    metrics = plot_run.main([*logs, "--output_dir", str(out), "--window", "5"])
    names = {"curves.png", "log_fit.png", "layers.png", "metrics.json", "index.html", "run.json"}
    assert {path.name for path in out.iterdir()} == names
    assert metrics["plain"]["last_loss"] == metrics["<ef>"]["last_loss"] == 2.5
    assert json.loads((out / "metrics.json").read_text())["plain"]["perplexity_cv"]["windows"] == 26
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "&lt;ef&gt;" in page and "<ef>" not in page


def test_no_run_can_carry_a_script_into_its_page(plot_run):
    args = plot_run.PlotArguments([f"{HOSTILE[0].replace('=', '')}=x"], "out")
    metrics = {HOSTILE[0]: run_metrics([{"step": 1, "loss": 2.0}]) | {"loss_key": HOSTILE[1]}}
    assert_harmless(plot_run.page(metrics, {}, args), shown=2)


@pytest.mark.parametrize("runs", [["only-a-path"], ["=path"], ["a=x", "a=y"]])
def test_a_run_without_its_own_name_is_an_error(plot_run, runs, tmp_path):
    with pytest.raises(ValueError, match="name=path"):
        plot_run.main(["--runs", *runs, "--output_dir", str(tmp_path)])


def test_a_missing_run_is_named(plot_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plot_run.main(["--runs", f"a={tmp_path / 'nowhere'}", "--output_dir", str(tmp_path / "out")])
