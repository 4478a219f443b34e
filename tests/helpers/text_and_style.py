"""Whether the text of a drawn figure can be read, and whether its panels look like all others."""

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.text import Text

from hf_evidenceflow.report.figures import COLOURS


LEAST_FONT = 7  # points, which the gallery shows as 8 pixels on a phone
OVERLAP = 0.25  # of the smaller font, that two boxes may share: they are higher than most glyphs
_PALETTE = np.concatenate([to_rgba_array(COLOURS)[:, :3], colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]])


def text_faults(figure) -> list[str]:
    """Texts that are too small, and pairs that stand on each other."""
    texts = _shown_texts(figure)
    found = [f"the text {text.get_text()!r} has {text.get_fontsize():g} points" for text in texts if _is_small(text)]
    straight = [text for text in texts if text.get_rotation() % 90 == 0]
    if not straight:
        return found
    boxes = np.array([text.get_window_extent().extents for text in straight])  # [N, x0 y0 x1 y1]
    shared = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    sizes = np.array([text.get_fontsize() for text in straight]) * figure.dpi / 72
    deep = shared.min(-1) > OVERLAP * np.minimum(sizes[:, None], sizes[None])
    pairs = np.argwhere(np.triu(deep, 1))
    return found + [
        f"{straight[one].get_text()!r} and {straight[other].get_text()!r} stand on each other" for one, other in pairs
    ]


def _is_small(text) -> bool:
    return text.get_fontsize() < LEAST_FONT


def _shown_texts(figure) -> list:
    found = list(figure.texts)
    for legend in figure.legends:
        found += legend.findobj(Text)
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        away = {id(label) for axis in (axes.xaxis, axes.yaxis) for label in _labels_out_of_view(axis)}
        found += [text for text in axes.findobj(Text) if id(text) not in away]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def _labels_out_of_view(axis):
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not (low - slack <= tick.get_loc() <= high + slack and tick.get_visible()):
            yield from (tick.label1, tick.label2)


def style_faults(axes):
    """What of a panel is not in the style of the house: greys and colours of the palette, open frames, titles left."""
    for artist in (*axes.lines, *axes.patches, *axes.collections):
        for color in _colors(artist):
            away = np.abs(_PALETTE - color).max(1).min()
            if np.ptp(color) > 0.02 and away > 0.02:
                yield f"the color {np.round(color, 2).tolist()} of {artist} is not one of the house"
    if axes.get_title("center") or axes.get_title("right"):
        yield "the title does not stand at the left"
    if not axes.images and any(axes.spines[side].get_visible() for side in ("top", "right")):
        yield "the frame is closed"


def _colors(artist):
    if isinstance(artist, Line2D):
        stroked = artist.get_linestyle() not in ("None", "none", " ", "")
        colors = artist.get_color() if stroked else artist.get_markeredgecolor()
    else:
        colors = artist.get_color() if isinstance(artist, LineCollection) else artist.get_facecolor()
    return [color[:3] for color in to_rgba_array(colors) if color[3] > 0]
