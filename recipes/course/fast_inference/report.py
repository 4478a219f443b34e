"""The tables and the picture of the recipe."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.recipes.course.fast_inference.cache_kinds import CacheResult
from hf_evidenceflow.recipes.course.fast_inference.paged_generation import PagedTrace
from hf_evidenceflow.recipes.course.fast_inference.speculation import SpeculationResult
from hf_evidenceflow.recipes.course.fast_inference.speculative_sampling import expected_tokens_per_pass
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


def speculation_table(results: Mapping[str, SpeculationResult], prompts: int) -> str:
    """Ways of decoding with drafts, in Markdown."""
    rows = []
    for name, result in results.items():
        rows.append(
            [
                name,
                f"{result.identical} of {prompts}",
                "" if math.isnan(result.acceptance) else f"{result.acceptance:.2f}",
                f"{result.tokens_per_pass:.2f}",
                f"{result.ratio:.2f} ({result.ratio_min:.2f} to {result.ratio_max:.2f})",
            ]
        )
    return markdown_table(
        ["greedy decoding", "same tokens", "drafts kept", "tokens a pass", "tokens/s to plain (range)"], rows
    )


def sampling_table(tests: Mapping[str, Mapping]) -> str:
    """Tests of the sampled distribution, in Markdown."""
    rows = [
        [name, f"{test['draws']:,}", f"{test['distance']:.3f}", f"{test['typical']:.3f}", f"{test['p_value']:.4f}"]
        for name, test in tests.items()
    ]
    return markdown_table(["samples from", "draws", "TV distance", "typical of exact samples", "p"], rows)


def cache_table(results: Mapping[str, CacheResult], reference: str = "dynamic") -> str:
    """Kinds of cache, in Markdown; time a token as the median over the first and the last quarter of the passes."""
    rows = []
    for name, result in results.items():
        quarter = max(1, len(result.milliseconds) // 4)
        same = (result.tokens == results[reference].tokens).float().mean().item()
        early, late = result.milliseconds[:quarter], result.milliseconds[-quarter:]
        rows.append(
            [
                name,
                f"{same:.0%}",
                f"{result.megabytes:.3f}",
                f"{statistics.median(early):.1f}",
                f"{statistics.median(late):.1f}",
            ]
        )
    return markdown_table(["cache", f"tokens as {reference}", "MB", "ms a token, first quarter", "last quarter"], rows)


def serving_table(results: Mapping[str, Mapping]) -> str:
    """Ways to serve many prompts, in Markdown."""
    rows = [
        [
            name,
            f"{row['identical']} of {row['prompts']}",
            f"{row['tokens_per_second']:.0f}",
            "" if row["peak_slots"] is None else f"{row['peak_slots']:,}",
        ]
        for name, row in results.items()
    ]
    return markdown_table(
        ["several samples of many prompts", "same tokens", "tokens/s", "most slots of the cache"], rows
    )


def plot_fast_inference(
    speculation: Mapping[str, SpeculationResult],
    draft_counts: Mapping[int, str],
    caches: Mapping[str, CacheResult],
    trace: PagedTrace | None,
    path: str | os.PathLike,
) -> Path | None:
    """
    Draw tokens a pass over the number of drafts, time a token over length, and blocks over the passes: what there is.

    Args:
        speculation (`Mapping[str, SpeculationResult]`):
            Results by name.
        draft_counts (`Mapping[int, str]`):
            The names of the ways with a draft model, by their number of drafts.
        caches (`Mapping[str, CacheResult]`):
            Results by kind of cache.
        trace ([`PagedTrace`], *optional*):
            Trace of paged generation.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`, *optional*: The path written; `None` if there is nothing to draw.
    """
    draws = []
    if draft_counts:
        draws.append(lambda panel: _plot_drafts(panel, speculation, draft_counts))
    if caches:
        draws.append(lambda panel: _plot_caches(panel, caches))
    if trace is not None:
        draws.append(lambda panel: _plot_blocks(panel, trace))
    if not draws:
        return None
    figure = new_figure((0.4 + 4 * len(draws), 3.7))
    for draw, panel in zip(draws, figure.subplots(1, len(draws), squeeze=False)[0]):
        draw(panel)
        panel.grid(alpha=0.25, linewidth=0.6)
    return save_figure(figure, path)


def _plot_caches(panel, caches):
    for index, (name, result) in enumerate(caches.items()):
        smooth = _running_median(result.milliseconds, 9)
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
        panel.plot(range(1, len(smooth) + 1), smooth, label=name, **style)
    panel.set(xlabel="tokens generated", ylabel="ms a token", title="Kinds of cache", ylim=(0, None))
    panel.legend(fontsize=8)


def _plot_blocks(panel, trace):
    passes = range(len(trace.used))
    panel.plot(passes, trace.contiguous, color=COLOURS[1], linestyle="--", label="row by row, longest row")
    panel.plot(
        passes,
        [used + saved for used, saved in zip(trace.used, trace.saved)],
        color=COLOURS[2],
        linestyle="-.",
        label="blocks, nothing shared",
    )
    panel.plot(passes, trace.used, color=COLOURS[0], label="blocks, shared")
    panel.set(xlabel="pass", ylabel="blocks in use", title="Paged cache", ylim=(0, None))
    panel.legend(fontsize=8)


def _plot_drafts(panel, speculation, draft_counts):
    counts = sorted(draft_counts)
    measured = [speculation[draft_counts[count]] for count in counts]
    panel.plot(
        counts,
        [result.tokens_per_pass for result in measured],
        color=COLOURS[0],
        marker="o",
        label="tokens a pass",
    )
    # The first draft of each pass is always tried: its share of successes is the probability in the formula
    rate = statistics.mean(result.by_position[0] for result in measured)
    panel.plot(
        counts,
        [expected_tokens_per_pass(rate, count) for count in counts],
        color="0.5",
        linestyle=":",
        label=f"expected if each is kept with {rate:.2f}",
    )
    panel.plot(
        counts,
        [result.ratio for result in measured],
        color=COLOURS[1],
        marker="s",
        linestyle="--",
        label="tokens/s to plain decoding",
    )
    panel.axhline(1.0, color="0.5", linewidth=0.8)
    panel.set(xlabel="drafts a pass", title="Draft model, greedy", ylim=(0, None), xticks=counts)
    panel.legend(fontsize=8)


def _running_median(values: Sequence[float], width: int) -> list[float]:
    half = width // 2
    return [statistics.median(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
