"""The picture of the recipe: drafts by their number and place, kinds of cache, and the blocks of a paged cache."""

import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hf_evidenceflow.recipes.course.fast_inference.cache_kinds import CacheResult
from hf_evidenceflow.recipes.course.fast_inference.paged_generation import PagedTrace
from hf_evidenceflow.recipes.course.fast_inference.speculation import SpeculationResult
from hf_evidenceflow.recipes.course.fast_inference.speculative_sampling import expected_tokens_per_pass
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


ROWS_SHOWN = 8


def inference_rows(
    speculation: Mapping[str, SpeculationResult],
    draft_counts: Mapping[int, str],
    caches: Mapping[str, CacheResult],
    trace: PagedTrace | None,
) -> dict[str, dict]:
    """
    What the picture is drawn from: one run, since times are of one machine.

    Args:
        speculation (`Mapping[str, SpeculationResult]`):
            Results by name.
        draft_counts (`Mapping[int, str]`):
            The names of the ways with a draft model, by their number of drafts.
        caches (`Mapping[str, CacheResult]`):
            Results by kind of cache.
        trace ([`PagedTrace`], *optional*):
            Trace of paged generation.

    Returns:
        `dict[str, dict]`: once of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    return {
        "once": {
            "speculation": {
                name: {key: getattr(result, key) for key in ("tokens_per_pass", "ratio", "by_position")}
                for name, result in speculation.items()
            },
            "draft_counts": {name: count for count, name in draft_counts.items()},
            "milliseconds": {name: result.milliseconds for name, result in caches.items()},
            "trace": None if trace is None else asdict(trace),
        }
    }


def plot_fast_inference(rows: PictureRows, path: str | os.PathLike) -> Path | None:
    """
    Draw what [`inference_rows`] has: tokens per pass over the number of drafts, drafts kept by their place, time per
    token over length, blocks over the passes, block tables, and how often each physical block is held.

    Args:
        rows ([`~recipes.course.shared.picture_rows.PictureRows`]):
            The rows.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`, *optional*: The path written; `None` if there is nothing to draw.
    """
    draft_counts, milliseconds = rows.once["draft_counts"], rows.once["milliseconds"]
    speculation = rows.once["speculation"]
    trace = None if rows.once["trace"] is None else PagedTrace(**rows.once["trace"])
    draws: list[Callable] = []
    if draft_counts:
        draws += [partial(_plot_drafts, speculation=speculation, draft_counts=draft_counts)]
        draws += [partial(_plot_places, speculation=speculation)]
    if milliseconds:
        draws.append(partial(_plot_caches, milliseconds=milliseconds))
    if trace is not None:
        draws += [partial(draw, trace=trace) for draw in (_plot_blocks, _plot_tables, _plot_physical)]
    if not draws:
        return None
    columns = min(3, len(draws))
    height = -(-len(draws) // columns)
    figure = new_figure((4.4 * columns, 3.8 * height))
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for draw, panel in zip(draws, panels):
        draw(panel)
    for panel in panels[len(draws) :]:
        panel.set_visible(False)
    return save_figure(figure, path)


def _plot_drafts(panel, speculation, draft_counts):
    by_count = {count: speculation[name] for name, count in draft_counts.items()}
    counts = sorted(by_count)
    measured = [by_count[count] for count in counts]
    tokens = [row["tokens_per_pass"] for row in measured]
    panel.plot(counts, tokens, color=COLOURS[0], marker="o", label="tokens per pass")
    # The first draft of each pass is always tried: its share of successes is the probability in the formula
    rate = statistics.mean(row["by_position"][0] for row in measured)
    expected = [expected_tokens_per_pass(rate, count) for count in counts]
    label = f"expected if each is kept with {rate:.2f}"
    panel.plot(counts, expected, color="0.5", linestyle=":", marker=".", label=label)
    ratios = [row["ratio"] for row in measured]
    panel.plot(counts, ratios, color=COLOURS[1], marker="s", linestyle="--", label="tokens/s to plain decoding")
    panel.axhline(1.0, color="0.5", linewidth=0.8)
    panel.set(ylim=(0, None), xticks=counts)
    _label(panel, "Draft model, greedy", "drafts per pass", "tokens per pass, speed-up")


def _plot_places(panel, speculation):
    """The share kept among those that were tried, as all before them had been kept."""
    shown = {name: row["by_position"] for name, row in speculation.items() if len(row["by_position"]) > 1}
    for index, (name, rates) in enumerate(shown.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
        panel.plot(range(1, len(rates) + 1), rates, marker="o", markersize=4, label=name, **style)
    panel.set(ylim=(0, 1.05), xticks=range(1, max(map(len, shown.values()), default=1) + 1))
    _label(panel, "Drafts kept by their place", "place of the draft", "share kept of those tried")


def _plot_caches(panel, milliseconds):
    for index, (name, times) in enumerate(milliseconds.items()):
        smooth = _running_median(times, 9)
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
        panel.plot(range(1, len(smooth) + 1), smooth, label=name, **style)
    panel.set(ylim=(0, None))
    _label(panel, "Kinds of cache", "tokens generated", "ms per token")


def _plot_blocks(panel, trace):
    passes = range(1, len(trace.used) + 1)
    unshared = [used + saved for used, saved in zip(trace.used, trace.saved)]
    panel.plot(passes, trace.contiguous, color=COLOURS[1], linestyle="--", label="row by row, longest row")
    panel.plot(passes, unshared, color=COLOURS[2], linestyle="-.", label="blocks, nothing shared")
    panel.plot(passes, trace.used, color=COLOURS[0], label="blocks, shared")
    panel.set(ylim=(0, None))
    _label(panel, "Memory of a paged cache", "tokens generated per sample", "blocks in use")


def _plot_tables(panel, trace):
    """Logical blocks of some rows from left to right; the number is the physical block, shared ones are colored."""
    rows = trace.tables[:ROWS_SHOWN]
    holders = Counter(block for table in trace.tables for block in table)
    for place, table in enumerate(rows):
        for index, block in enumerate(table):
            color = COLOURS[5] if holders[block] > 1 else "0.93"
            panel.barh(place, 1, left=index, height=0.92, color=color, edgecolor="white")
            panel.text(index + 0.5, place, str(block), ha="center", va="center", fontsize=7)
    panel.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5), xlim=(0, max(map(len, rows))))
    _label(panel, "Block tables (blue: shared)", "logical block", "sample")
    panel.grid(visible=False)


def _plot_physical(panel, trace):
    holders = Counter(block for table in trace.tables for block in table)
    blocks = range(max(holders) + 1)
    colors = [COLOURS[5] if holders[block] > 1 else COLOURS[0] for block in blocks]
    panel.bar(blocks, [holders[block] for block in blocks], 0.9, color=colors)
    _label(panel, "Physical blocks at the peak", "physical block", "samples that hold it")


def _label(panel, title: str, x: str, y: str) -> None:
    finish_panel(panel, title, x, y)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(frameon=False, fontsize=8)


def _running_median(values: Sequence[float], width: int) -> list[float]:
    half = width // 2
    return [statistics.median(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
