"""The check that reads every saved figure sees what it is for."""

import pytest
from artists import faults
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def figure_of(draw):
    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel="loss", title="Loss")
    axes.plot([1, 2, 3], [3, 2, 1], color="C0", label="a run")
    axes.legend()
    draw(figure, axes)
    figure.canvas.draw()
    return figure


def test_a_whole_figure_has_no_faults():
    assert faults(figure_of(lambda figure, axes: axes.axhline(2, color="C1"))) == []


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda figure, axes: axes.plot([1, 2], [1, 2], color="C1"), "2 points and no marker"),
        (lambda figure, axes: axes.plot([1, float("nan"), 3], [1, 2, 3], color="C1"), "2 points and no marker"),
        (lambda figure, axes: axes.set_ylabel(""), "the y axis has no label"),
        (lambda figure, axes: [line.remove() for line in axes.lines], "nothing is drawn"),
        (lambda figure, axes: axes.plot([1, 2, 3], [1, 1, 1], color="C1", label="b"), "'b' is drawn and stands in no"),
        (
            lambda figure, axes: figure.legend(handles=axes.plot([], [], color="C2", label="gone")),
            "the legend entry 'gone' is not drawn",
        ),
        (lambda figure, axes: figure.text(0.9, 0.5, "far too long a text for this place"), "is cut off by"),
    ],
)
def test_each_fault_is_named(draw, message):
    assert any(message in fault for fault in faults(figure_of(draw)))
