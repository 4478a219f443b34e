"""benchmarks/corruption.py: some damaged files of each format, and that its judge tells bad answers from good ones."""

import pytest
from launching import fork_script
from repository import BENCHMARKS


@pytest.mark.slow
def test_damaged_files_are_refused_clearly_or_change_nothing(tmp_path):
    kinds = ["weights", "config", "tokenizer", "data", "shards, loaded", "grid", "recipe settings"]
    output = tmp_path / "output"
    process = fork_script(
        BENCHMARKS / "corruption.py", ["--cases", 3, "--kinds", *kinds], stdout=output, stderr=output
    )
    process.join(timeout=900)
    assert "| all | 21 |" in output.read_text(), output.read_text()
    assert process.exitcode == 0, output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("result", "message", "outcome"),
    [
        (None, "ValueError: config.json is empty. Correct it.", "clear"),
        (None, "ValueError: config.json is empty.", "raw"),
        (None, "KeyError: 'x'. Correct it.", "raw"),
        (1, "error: config.json is empty. Correct it.", "clear"),
        ("abc", "", "same"),
        ("abd", "", "silent"),
    ],
)
def test_the_judge_asks_for_the_place_and_the_remedy(monkeypatch, tmp_path, result, message, outcome):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from corruption import _judge

    found = {"result": result, "message": message}
    assert _judge(found, ["config.json"], "abc", tmp_path / "canary") == outcome
    (tmp_path / "canary").touch()
    assert _judge(found, ["config.json"], "abc", tmp_path / "canary") == "code"
