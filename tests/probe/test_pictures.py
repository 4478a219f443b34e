"""The tables, pictures and the page of a probe."""

import html
import sys

import pandas as pd
import pytest
from hostile_text import HOSTILE, assert_harmless
from PIL import Image
from probe_models import LAYERS, tiny_model

from hf_evidenceflow.probe.heat_maps import HEAT_MAPS, plot_heat_map, plot_trajectories, split_tokens
from hf_evidenceflow.probe.page import write_probe_page
from hf_evidenceflow.probe.probe import EvidenceProbe
from hf_evidenceflow.probe.table import layer_table, layer_token_table, token_table, write_tables
from hf_evidenceflow.probe.texts import visible


@pytest.fixture(scope="module")
def result(tokenizer):
    return EvidenceProbe(tiny_model(), tokenizer, top_k=3).probe(["2 $ cats", "a\ndog"])


def test_the_table_has_one_row_a_layer_and_token(result):
    table = layer_token_table(result)
    assert len(table) == (LAYERS + 1) * len(result.labels)
    row = table[(table.layer == 1) & (table.row == 1) & (table.position == 2)].iloc[0]
    place = result.rows.index(1) + 2
    assert row.lens_loss == result.measures["lens_loss"][2, place].item()
    assert row.top_tokens == [result.token_strings[index] for index in row.top_ids]


def test_the_layer_table_has_the_means(result):
    table = layer_table(result)
    assert table.layer.tolist() == [-1, 0, 1, 2] and table.effective_rank.tolist() == result.effective_rank
    assert table.entropy[3] == pytest.approx(result.measures["entropy"][3].mean().item(), rel=1e-6)


def test_the_layer_table_has_an_interval_over_texts(result):
    table = layer_table(result)
    assert (table.lens_loss_low < table.lens_loss).all() and (table.lens_loss < table.lens_loss_high).all()


def test_the_token_table_has_drift_rate_and_effective_depth(result):
    table = token_table(result)
    assert table.drift_rate.tolist() == result.drift_rate.tolist()
    assert table.effective_depth.tolist() == result.effective_depth.tolist()


def test_parquet_and_csv_give_the_table_back(result, tmp_path):
    paths = {path.name: path for path in write_tables(result, tmp_path / "new")}
    parquet, csv = (pd.read_parquet(paths["tokens.parquet"]), pd.read_csv(paths["tokens.csv"]))
    pd.testing.assert_frame_equal(parquet, token_table(result), check_dtype=False)
    assert csv.drift_rate.tolist() == pytest.approx(result.drift_rate.tolist())
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(paths)


@pytest.mark.parametrize("measure", HEAT_MAPS)
def test_each_heat_map_is_drawn(result, measure, tmp_path):
    with Image.open(plot_heat_map(result, measure, tmp_path / "map.png")) as image:
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50


def test_a_long_text_goes_on_in_further_panels(result, tmp_path):
    heights = []
    for width in (32, 3):
        with Image.open(plot_heat_map(result, "entropy", tmp_path / "map.png", tokens_a_panel=width)) as image:
            heights.append(image.size[1])
    assert heights[1] > 1.5 * heights[0]


def test_panels_hold_one_text_and_are_about_equally_full():
    assert split_tokens([0, 0, 0, 0, 1], 3) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("call, value", [({"measure": "rank"}, "'rank'"), ({"tokens_a_panel": 0}, "0")])
def test_a_wrong_heat_map_is_an_error(result, call, value, tmp_path):
    with pytest.raises(ValueError, match=value):
        plot_heat_map(result, **{"measure": "entropy", "path": tmp_path / "x.png"} | call)


def test_more_named_trajectories_add_colours(result, tmp_path):
    colours = []
    for named in (1, 6):
        with Image.open(plot_trajectories(result, tmp_path / "t.png", named=named)) as image:
            colours.append(len(image.convert("RGB").getcolors(maxcolors=1 << 24)))
    assert colours[1] > colours[0]


def test_what_cannot_be_seen_gets_a_mark():
    assert [visible(text) for text in (" a", "\n", "\t", "", "\x00")] == [
        "·a",
        "↵",
        "⇥",
        "∅",
        "\N{REPLACEMENT CHARACTER}",
    ]


@pytest.fixture
def page_of(tmp_path):
    def page_of(result, **settings):
        return write_probe_page(result, tmp_path / "p.html", "<b>model</b>", **settings).read_text(encoding="utf-8")

    return page_of


def test_the_page_needs_no_other_file_and_no_script(result, page_of, tmp_path):
    pictures = {"entropy": plot_heat_map(result, "entropy", tmp_path / "map.png")}
    page = assert_harmless(page_of(result, heat_maps=pictures, trajectories=pictures["entropy"]), shown=0)
    assert page.tags.count("img") == 2


def test_no_token_and_no_name_can_carry_a_script(result, tmp_path):
    hostile = dict.fromkeys(result.token_strings, HOSTILE[0].replace(" ", "_"))
    changed = type(result)(**vars(result) | {"token_strings": hostile})
    page = assert_harmless(write_probe_page(changed, tmp_path / "p.html", HOSTILE[0]).read_text(), shown=1)
    assert page.text.count(hostile[result.labels[0]]) > (LAYERS + 1) * len(result.labels)


def test_the_page_needs_no_pandas(result, page_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "effective rank" in page_of(result)
    with pytest.raises(ImportError, match=r"hf-evidenceflow\[tables\]"):
        token_table(result)


def test_the_page_has_a_cell_for_each_layer_and_token_with_its_best_token(result, page_of):
    page = page_of(result)
    assert page.count('class="tip"') == (LAYERS + 1) * len(result.labels)
    best = visible(result.token_strings[result.top_ids[-1, 0, 0].item()])
    first = page.split('<th scope="row">layer 2</th>')[1]
    assert f">{html.escape(best)}<span" in first.split("</td>")[0]


def test_a_page_of_a_long_text_says_what_it_leaves_out(result, page_of):
    page = page_of(result, max_tokens=4)
    assert page.count('class="tip"') == (LAYERS + 1) * 4
    assert f"The first 4 of {len(result.labels)} tokens" in page
