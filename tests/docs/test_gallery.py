"""The gallery: values are read where a claim says, what is missing says so, and the page's figures can be read."""

import importlib.util
import json
from fnmatch import fnmatch

import pytest
from committed_pictures import NOT_REDRAWN, NOTEBOOKS, REDRAWN
from repository import ROOT


def neighbor(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gallery, figures = neighbor("gallery"), neighbor("gallery_figures")
CLAIMS = [claim for section in gallery.sections() for claim in section["claims"]]


@pytest.fixture
def section(tmp_path, monkeypatch):
    """What becomes of a claim over a JSON and a Markdown file."""
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    cells = [{"cell": {"arm": "a"}, "mean": 1.25}, {"cell": {"arm": "b"}, "mean": 2.5, "none": None}]
    (tmp_path / "x.json").write_text(json.dumps({"cells": cells, "verdict": "refuted"}))
    (tmp_path / "t.md").write_text("|  | one | two |\n| --- | ---: | ---: |\n| row: a, b | 3 | 4.5 [4, 5] |\n")

    def section(**claim):
        claim = {"title": "T", "published": "P", "verdict": "confirmed"} | claim
        data = {
            "title": "S",
            "intro": "I",
            "command": "c",
            "files": {"x": "x.json", "t": "t.md", "no": "no.json", "n": "n.ipynb"},
            "claims": [claim],
        }
        (tmp_path / "claims.yaml").write_text(json.dumps(data))
        (found,) = gallery.sections(tmp_path)
        return found

    return section


def test_values_of_json_and_tables_are_filled_in(section):
    (claim,) = section(ours="{x#cells/arm=b/mean:.2f} {x#cells/0/mean} {t#row: a, b/two}", verdict="{x#verdict}")[
        "claims"
    ]
    assert claim["ours"] == "2.50 1.25 4.5 [4, 5]" and claim["verdict"] == "refuted"


@pytest.mark.parametrize("value", ["{no#a}", "{x#cells/arm=c/mean}", "{x#cells/arm=b/none:.1f}", "{t#row/one}"])
def test_what_is_missing_makes_a_claim_not_measured(section, value):
    (claim,) = section(ours=f"It is {value} and {{x#verdict}}.")["claims"]
    assert claim["ours"] == "It is not measured and refuted." and claim["left"]
    assert claim["verdict"] == "not measured"


def test_tables_and_pictures_of_notebooks_are_taken(section, tmp_path):
    table = {"text": ["|  | one |\n", "| --- | ---: |\n", "| row | 7 |\n"]}
    picture = {"data": {"image/png": "cGlj"}}
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [{"outputs": [table, picture]}, {}]}))
    found = section(ours="{n#row/one}", pictures=["n.ipynb"])
    assert found["claims"][0]["ours"] == "7"
    assert gallery.notebook_pictures([found]) == {"notebooks/n_0.png": b"pic"}
    assert "[![n 0](notebooks/n_0.png)" in gallery.gallery_page([found])


def test_a_claim_rests_on_the_files_that_its_numbers_are_read_from(section):
    (claim,) = section(ours="{x#cells/0/mean}", verdict="{x#verdict}", rows=["t.md"])["claims"]
    assert claim["rows"] == ["t.md", "x.json"]


def test_where_all_is_missing_nothing_is_said(section):
    assert "ours" not in section(ours="It is {no#a}.")["claims"][0]


def test_a_claim_whose_rows_are_gone_is_not_measured(section):
    (claim,) = section(ours="It is so.", rows=["t.md", "gone.md"])["claims"]
    assert claim["verdict"] == "not measured" and "ours" not in claim
    assert claim["rows"] == ["t.md"] and claim["left"] == "gone.md: not there."


def test_a_claim_without_a_number_of_ours_is_not_measured(section):
    assert section()["claims"][0]["verdict"] == "not measured"


def test_an_unknown_verdict_is_named(section):
    with pytest.raises(ValueError, match="'T': `verdict` must be one of confirmed, .*got 'true'"):
        section(ours="1", verdict="true")


def test_the_page_counts_verdicts_and_shows_what_was_made_up(section):
    page = gallery.gallery_page([section(ours="1", verdict="undecided", invented="dice")])
    assert "| [S](#s) | 0 | 0 | 1 | 0 |" in page and "P *The published picture is drawn from dice.*" in page


def test_every_claim_that_is_measured_links_to_rows_that_are_there():
    for claim in CLAIMS:
        if claim["verdict"] != "not measured":
            files = [file.partition("#")[0] for file in claim["rows"]]
            assert files and all((ROOT / file).exists() for file in files), claim["title"]


def test_every_claim_that_is_measured_has_its_command():
    assert all("command" in claim for claim in CLAIMS if claim["verdict"] != "not measured")


def test_what_is_not_measured_says_what_it_would_take():
    missing = [claim["title"] for claim in CLAIMS if claim["verdict"] == "not measured" and "left" not in claim]
    assert missing == []


def test_each_picture_is_one_that_tests_draw():
    shown = [path.relative_to(ROOT).as_posix() for claim in CLAIMS for path, _ in gallery._shown(claim)]
    known = (*REDRAWN, *NOT_REDRAWN, *NOTEBOOKS)
    assert shown and [each for each in shown if not any(fnmatch(each, pattern) for pattern in known)] == []


def test_the_ends_of_the_study_are_whole_and_those_of_its_table(tmp_path):
    ends = figures.study_ends()
    assert figures.draw_ends(ends, tmp_path / "ends.png").exists()
    assert [len(values) for arm in ends.values() for values in arm.values()] == [3] * 16
    assert sum(ends["full"]["perplexity"]) / 3 == pytest.approx(122.8, abs=0.05)
    assert ends["head_only"]["loss_p"] == pytest.approx([6.0] * 3, abs=0.01)  # the untrained value


def test_the_figures_of_tinyseek_are_whole(tmp_path):
    """Each is read as it is saved."""

    def log(scale, supervised):
        rows = [
            {"step": step, "loss": scale * (5 - step / 100), "learning_rate": 0.01, "router_balance": scale}
            | ({"evidence_flow/model_loss": 5 - step / 100, "evidence_flow/loss": 12 / step} if supervised else {})
            for step in range(5, 201, 5)
        ]
        return rows + [{"step": step, "eval_loss": scale * (6 - step / 100)} for step in range(25, 201, 25)]

    logs = {
        arm: [log(1, arm in ("full", "no_warmup")), log(0.9, arm in ("full", "no_warmup"))] for arm in figures.ARMS
    }
    assert len(figures.draw(logs, tmp_path)) == 13
    found = figures.summary(logs["full"])
    assert found["evaluations"] == 8 and found["seeds"] == 2 and found["loss_p_first"] == pytest.approx(2.4)
    assert found["loss"] == pytest.approx(5 - sum(range(155, 201, 5)) / 10 / 100)
