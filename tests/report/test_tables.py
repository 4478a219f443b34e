import pytest

from hf_evidenceflow.report.tables import markdown_table


def test_the_last_letter_aligns_all_further_columns():
    assert markdown_table(["a", "b", "c"], [["x", 1, 2.5]]) == "| a | b | c |\n| --- | ---: | ---: |\n| x | 1 | 2.5 |"
    assert markdown_table(["a", "b", "c"], [], align="rl").endswith("| ---: | --- | --- |")


def test_no_cell_can_break_the_table():
    (cells,) = markdown_table(["a", "b"], [["x | y\nz", ""]]).splitlines()[2:]
    assert cells == "| x \\| y z |  |"


def test_a_row_with_another_number_of_cells_is_an_error():
    with pytest.raises(ValueError, match=r"2 cells.*\['one'\]"):
        markdown_table(["a", "b"], [["one"]])
