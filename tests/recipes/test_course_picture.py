"""Rows of pictures: written by a recipe, read back, joined over seeds, and drawn from one run and from several."""

import json
import math
from types import SimpleNamespace

import pytest

from hf_evidenceflow.recipes import course_picture
from hf_evidenceflow.recipes.course.seq2seq_pretraining.filling_plots import plot_filling
from hf_evidenceflow.recipes.course.shared import seed_plots
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments
from hf_evidenceflow.recipes.course.shared.picture_rows import (
    MOST_POINTS,
    PictureRows,
    merge_seeds,
    read_picture,
    thinned,
)
from hf_evidenceflow.recipes.course.shared.recipe import course_run


def rows_of(seed, recipe="seq2seq_pretraining", steps=(1, 2, 3), **settings):
    losses = [2.0 / step + 0.1 * seed for step in steps]
    share = {"value": 0.2 + 0.1 * seed, "low": 0.1, "high": 0.9}
    return PictureRows(
        recipe,
        [seed],
        {"steps": 3, **settings},
        curves={"GPT-2": {"loss": {"steps": list(steps), "runs": [losses]}}},
        scores={"filled": {"left side": {"1": share, "2": share}}, "bits": [4, 0.5 * seed], "name": "a"},
        once={"words": [f"of seed {seed}"]},
    )


def written(folder, **named):
    return [str(rows.write(folder / f"{name}.json")) for name, rows in named.items()]


def test_a_run_leaves_the_rows_that_it_draws(tmp_path):
    drawn = []
    with course_run("topic", CourseArguments(output_dir=str(tmp_path), seed=7, max_documents=11)) as run:
        run.draw(lambda rows, path: drawn.append((rows, path)), {"scores": {"loss": 1.23456789}})
    rows = read_picture(tmp_path)
    assert drawn == [(rows, tmp_path / "topic.png")]
    assert (rows.recipe, rows.seeds, rows.settings["max_documents"]) == ("topic", [7], 11)
    assert not {"seed", "output_dir", "overwrite"} & set(rows.settings)
    assert rows.scores == {"loss": 1.23457}


def test_a_share_of_nothing_stays_a_number(tmp_path):
    (path,) = written(tmp_path, run=PictureRows("fast_inference", [0], {}, once={"kept": [0.5, float("nan")]}))
    for rows in (read_picture(path), merge_seeds({"run": read_picture(path)})):
        assert rows.once["kept"][0] == 0.5 and math.isnan(rows.once["kept"][1])


def test_a_long_curve_keeps_its_mean_and_its_last_step():
    log = [{"step": step, "loss": float(step), "other": 0.0} for step in range(1, 502)]
    (key,) = found = thinned(log, ["loss", "absent"])
    (values,) = found[key]["runs"]
    assert len(values) <= MOST_POINTS and found[key]["steps"][-1] == 501
    assert values[0] == 2.0 and found[key]["steps"][0] == 3  # three entries a point
    assert thinned(log[:5], ["loss"])["loss"] == {"steps": [1, 2, 3, 4, 5], "runs": [[1.0, 2.0, 3.0, 4.0, 5.0]]}


def test_several_seeds_are_mean_least_and_greatest():
    merged = merge_seeds({str(seed): rows_of(seed) for seed in (2, 0, 5)})
    assert merged.seeds == [2, 0, 5] and merged.once == {"words": ["of seed 2"]}
    share = merged.scores["filled"]["left side"]["2"]
    assert share == {"value": pytest.approx(0.2 + 0.7 / 3, abs=1e-6), "low": 0.2, "high": 0.7}
    assert merged.scores["bits"] == [4, {"value": pytest.approx(3.5 / 3, abs=1e-5), "low": 0.0, "high": 2.5}]
    assert merged.scores["name"] == "a"
    assert [values[0] for values in merged.curves["GPT-2"]["loss"]["runs"]] == [2.2, 2.0, 2.5]
    assert merge_seeds({"one": rows_of(3)}) == rows_of(3)


def test_of_several_seeds_the_band_goes_from_the_least_to_the_greatest_of_smoothed_runs():
    calls = SimpleNamespace(band=None, line=None)
    panel = SimpleNamespace(
        fill_between=lambda steps, low, high, **_: setattr(calls, "band", (list(low), list(high))),
        plot=lambda steps, values, **_: setattr(calls, "line", list(values)),
    )
    curve = {"steps": [1, 2], "runs": [[0.0, 4.0], [2.0, 2.0], [1.0, 9.0]]}
    seed_plots.draw_curve(panel, curve, 0, "loss")
    assert calls.band == ([0.0, 2.0], [2.0, 9.0]) and calls.line == [1.0, 5.0]
    seed_plots.draw_curve(panel, curve, 0, "loss", smooth=2)  # each point with the next one
    assert calls.band == ([2.0, 2.0], [5.0, 9.0])


@pytest.mark.parametrize("seeds", [(4,), (4, 1, 6)])
def test_the_picture_is_drawn_from_one_run_and_from_several(seeds, tmp_path, capsys):
    runs = written(tmp_path, **{f"seed_{seed}": rows_of(seed) for seed in seeds})
    drawn = course_picture.main(["--runs", *runs, "--output", str(tmp_path / "picture.png")])
    assert drawn.seeds == list(seeds) and (tmp_path / "picture.png").exists()
    assert f"{len(seeds)} of its runs" in capsys.readouterr().out


def test_the_table_has_mean_least_and_greatest_of_each_number(tmp_path):
    runs = written(tmp_path, a=rows_of(0), b=rows_of(3))
    out = ["--output", str(tmp_path / "picture.png"), "--table", str(tmp_path / "seeds.md")]
    course_picture.main(["--runs", *runs, *out])
    text = (tmp_path / "seeds.md").read_text()
    assert text.startswith("Seeds 0, 3;")
    assert "| filled, left side, 2 | 0.35 | 0.2 | 0.5 |\n| bits, 0 | 4 | 4 | 4 |\n| bits, 1 | 0.75 | 0 | 1.5 |" in text
    with pytest.raises(ValueError, match=r"two runs or more, got the seeds \[0\]"):
        course_picture.main(["--runs", runs[0], *out])


def test_a_picture_of_several_seeds_says_what_its_marks_are(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    said = []
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **_: said.append(text))
    plot_filling(rows_of(4), tmp_path / "one.png")
    assert said == []
    plot_filling(merge_seeds({"a": rows_of(4), "b": rows_of(1)}), tmp_path / "two.png")
    assert said == ["Mean of seeds 4, 1; bands and error bars: least to greatest"]


@pytest.mark.parametrize(
    "other, message",
    [
        (rows_of(1, recipe="compression"), r"a\.json is of seq2seq_pretraining, .*b\.json of compression"),
        (rows_of(1, width=64), r"`width` is None in .*a\.json and 64 in .*b\.json"),
        (rows_of(0), r"seeds \[0, 0\], one of them twice"),
        (rows_of(1, steps=(1, 2, 4)), "`loss` of GPT-2 at other steps"),
    ],
)
def test_runs_that_are_no_seeds_of_one_study_are_refused(other, message, tmp_path):
    runs = written(tmp_path, a=rows_of(0), b=other)
    with pytest.raises(ValueError, match=message):
        course_picture.main(["--runs", *runs, "--output", str(tmp_path / "picture.png")])
    assert not (tmp_path / "picture.png").exists()


def test_a_picture_of_one_run_is_not_drawn_from_two(tmp_path):
    single = [PictureRows("scaling_laws", [seed], {}, once={"preset": "hoffmann"}) for seed in (0, 1)]
    with pytest.raises(ValueError, match="scaling_laws is of a single run, got 2"):
        merge_seeds(dict(zip("ab", single)))


def test_a_folder_without_rows_a_broken_file_and_an_unknown_recipe_are_named(tmp_path):
    picture = ["--output", str(tmp_path / "picture.png")]
    with pytest.raises(FileNotFoundError, match=r"no .*picture\.json.*output folders of a course recipe"):
        course_picture.main(["--runs", str(tmp_path), *picture])
    (tmp_path / "picture.json").write_text(json.dumps({"recipe": "topic", "seeds": [0], "settings": {}}))
    with pytest.raises(ValueError, match=r"picture\.json has no `curves`"):
        course_picture.main(["--runs", str(tmp_path), *picture])
    with pytest.raises(ValueError, match="'topic', which is none of word_vectors"):
        course_picture.main(["--runs", *written(tmp_path, a=rows_of(0, recipe="topic")), *picture])
