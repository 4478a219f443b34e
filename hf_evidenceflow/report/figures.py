"""What all pictures share: a figure that leaves matplotlib's state alone, the look of a panel, and saving."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from ..atomic_write import atomic_file


# Okabe and Ito's colours, told apart by colour-blind readers too; line styles carry the same in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":")
# For the scripts that matplotlib's own font lacks; those that are not installed are passed over
_FURTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans", "Microsoft YaHei"),
    *("Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial Unicode MS"),
)


def new_figure(size: Sequence[float]):
    """
    An empty matplotlib figure of a width and height in inches, at 140 dots each, with constrained layout.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'hf-evidenceflow[plots]'.") from error
    # The object-oriented interface: pyplot would keep the figure, and pick a backend for the whole process.
    figure = Figure(figsize=tuple(size), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish_panel(panel, title: str = "", x: str = "", y: str = "") -> None:
    """The look that all panels share; texts that are not given stay as they are."""
    if title:
        panel.set_title(title, fontsize=11, loc="left", fontweight="bold")
    if x:
        panel.set_xlabel(x)
    if y:
        panel.set_ylabel(y)
    for label in (panel.xaxis.label, panel.yaxis.label):
        label.set_size(9)
    panel.tick_params(which="both", labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    if not panel.images:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_axisbelow(True)


def token_fonts() -> list[str]:
    """Font families for tokens of any language, as far as they are installed."""
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed)]


def save_figure(figure, path: str | os.PathLike) -> Path:
    """Write a figure as PNG, whole or not at all, and return its path. Missing parent folders are made."""
    picture = io.BytesIO()  # drawing takes long, and a process killed meanwhile would leave the temporary file
    figure.savefig(picture, format="png")
    with atomic_file(path) as temporary:
        temporary.write_bytes(picture.getvalue())
    return Path(path)
