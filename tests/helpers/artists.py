"""
Reads the artists of a figure and names what a reader would miss: lines without points, panels without data or names of
their axes, legends that do not fit what is drawn, text beyond the canvas; and what `text_and_style` finds.
"""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.lines import Line2D
from text_and_style import style_faults, text_faults


LEAST_POINTS = 3
BEYOND_THE_CANVAS = 3  # pixels that glyphs may stick out by


def faults(figure) -> list[str]:
    """What is wrong with a figure that has been drawn; empty if nothing is."""
    panels = [axes for axes in figure.axes if axes.get_visible() and not _is_color_bar(axes)]
    found = [] if panels else ["there is no panel"]
    for axes in panels:
        name = axes.get_title("left") or axes.get_title() or f"panel {figure.axes.index(axes)}"
        of_panel = (*_data_faults(axes), *_label_faults(axes, panels), *style_faults(axes))
        found += [f"{name}: {fault}" for fault in of_panel]
    return found + _legend_faults(figure, panels) + _clipped(figure) + text_faults(figure)


def _is_color_bar(axes) -> bool:
    return axes.get_label() == "<colorbar>"


def _is_reference(line) -> bool:
    """A line of `axhline` or `axvline`, which stands for one number."""
    return line.get_transform() != line.axes.transData


def _points(line) -> int:
    values = np.asarray(line.get_xydata(), dtype=float)
    return int(np.isfinite(values).all(axis=1).sum())


def _drawn_lines(axes) -> list:
    return [line for line in axes.lines if not _is_reference(line) and _points(line)]


def _data_faults(axes):
    if not (axes.collections or axes.patches or axes.images or axes.texts or _drawn_lines(axes)):
        yield "nothing is drawn"
    for line in _drawn_lines(axes):
        thin = _points(line) == 2 and line.get_linewidth() < 1  # connects two points that are marked themselves
        if line.get_marker() in ("", "None", None, " ") and _points(line) < LEAST_POINTS and not thin:
            yield f"the line {line.get_label()!r} has {_points(line)} points and no marker"


def _label_faults(axes, panels):
    """Each axis is named, by itself, by words at its ticks, or by a panel of the same column or row."""
    place = axes.get_subplotspec()
    for axis, span in (("x", "colspan"), ("y", "rowspan")):
        peers = [axes]
        if place is not None:
            peers += [
                other
                for other in panels
                if other.get_subplotspec() is not None
                and getattr(other.get_subplotspec(), span) == getattr(place, span)
            ]
        named = any(getattr(other, f"get_{axis}label")() for other in peers)
        ticks = [tick.get_text() for tick in getattr(axes, f"get_{axis}ticklabels")()]
        if ticks and not named and not any(any(letter.isalpha() for letter in text) for text in ticks):
            yield f"the {axis} axis has no label"


def _color(artist) -> str:
    """The color of a line, an area, a bar or of points with error bars."""
    if isinstance(artist, ErrorbarContainer):
        artist = artist.lines[0] or artist.lines[2][0]
    color = artist.get_color() if isinstance(artist, Line2D | LineCollection) else artist.get_facecolor()
    color = np.asarray(color)
    return to_hex(tuple(color.ravel()[:4]) if color.ndim else color.item())


def _legends(figure, panels) -> list:
    return [*figure.legends, *(axes.get_legend() for axes in panels if axes.get_legend() is not None)]


def _drawn(panels) -> list:
    artists = [line for axes in panels for line in axes.lines if _is_reference(line) or _points(line)]
    artists += [artist for axes in panels for artist in (*axes.collections, *axes.patches)]
    return artists


def _legend_faults(figure, panels) -> list[str]:
    shown = {text.get_text() for legend in _legends(figure, panels) for text in legend.get_texts()}
    found = []
    for axes in panels:
        for artist, label in zip(*axes.get_legend_handles_labels()):
            proxy = (
                not _points(artist) if isinstance(artist, Line2D) else isinstance(artist, BarContainer) and not artist
            )
            if label not in shown and not proxy:
                found.append(f"{label!r} is drawn and stands in no legend")
    drawn = {_color(artist) for artist in _drawn(panels)}
    for legend in _legends(figure, panels):
        for handle, text in zip(legend.legend_handles, legend.get_texts()):
            if _color(handle) not in drawn:
                found.append(f"the legend entry {text.get_text()!r} is not drawn")
    return found


def _clipped(figure) -> list[str]:
    """Panels with their titles, ticks and texts, legends and titles of the figure that stick out."""
    found = []
    for artist in (*figure.axes, *figure.legends, *figure.texts):
        box = artist.get_tightbbox(figure.canvas.get_renderer()) if artist.get_visible() else None
        if box is None:
            continue
        beyond = max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1)
        if beyond > BEYOND_THE_CANVAS:
            found.append(f"{artist} is cut off by {beyond:.0f} pixels")
    return found
