"""The tables of the recipe."""

import math
import statistics
from collections.abc import Mapping

from hf_evidenceflow.recipes.course.fast_inference.cache_kinds import CacheResult
from hf_evidenceflow.recipes.course.fast_inference.speculation import SpeculationResult
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
