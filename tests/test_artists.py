"""The check that reads every saved figure sees what it is for."""

import pytest
from artists import faults

from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure


C1, C2 = COLOURS[1:3]


def figure_of(draw):
    figure = new_figure((5, 4))
    axes = figure.subplots()
    finish_panel(axes, "Loss", "step", "loss")
    axes.plot([1, 2, 3], [3, 2, 1], color=COLOURS[0], label="a run")
    axes.legend()
    draw(figure, axes)
    figure.canvas.draw()
    return figure


def test_a_whole_figure_has_no_faults():
    assert faults(figure_of(lambda figure, axes: axes.axhline(2, color=C1))) == []


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda figure, axes: axes.plot([1, 2], [1, 2], color=C1), "2 points and no marker"),
        (lambda figure, axes: axes.plot([1, float("nan"), 3], [1, 2, 3], color=C1), "2 points and no marker"),
        (lambda figure, axes: axes.set_ylabel(""), "the y axis has no label"),
        (lambda figure, axes: [line.remove() for line in axes.lines], "nothing is drawn"),
        (lambda figure, axes: axes.plot([1, 2, 3], [1, 1, 1], color=C1, label="b"), "'b' is drawn and stands in no"),
        (
            lambda figure, axes: figure.legend(handles=axes.plot([], [], color=C2, label="gone")),
            "the legend entry 'gone' is not drawn",
        ),
        (lambda figure, axes: figure.text(0.9, 0.5, "far too long a text for this place"), "is cut off by"),
        (lambda figure, axes: axes.text(2, 2, "fine print", fontsize=6), "'fine print' has 6 points"),
        (
            lambda figure, axes: [axes.text(2, 2, "one"), axes.text(2.02, 2.02, "two")],
            "'one' and 'two' stand on each other",
        ),
        (lambda figure, axes: axes.plot([1, 2, 3], [1, 1, 1], color="red"), "is not one of the house"),
        (lambda figure, axes: axes.set_title("In the middle"), "the title does not stand at the left"),
        (lambda figure, axes: axes.spines["top"].set_visible(True), "the frame is closed"),
    ],
)
def test_each_fault_is_named(draw, message):
    assert any(message in fault for fault in faults(figure_of(draw)))
