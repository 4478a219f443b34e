"""The tables of `tokenizer_assignment.py`: medians over the rounds, naive totals, published figures."""

from pathlib import Path
from statistics import median

import numpy as np
from tokenizer_rows import RESERVED

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.report.tables import markdown_table


# Laptop, 19 processes: text, vocabulary, then naive and fast: seconds of pre-tokenization, merges a second, seconds
PUBLISHED_TRAINING = [
    ("TinyStories valid, 21 MB", 4096, (6.18, 298, 32.4), (0.4, 13_450, None), 48),
    ("OpenWebText, 100 MB", 32_000, (30.0, 7, None), (1.89, 1827, 20.6), 210),
]
# Server, 16 processes: text, vocabulary, distinct pre-tokens, seconds of both parts, peak memory in GB
PUBLISHED_SERVER = [
    ("TinyStories train, 2.2 GB", 10_000, 59_933, 25, 10, 6.89),
    ("OpenWebText, 11 GB", 32_000, 6_601_892, 157, 535, 23.78),
]
# Text, thousands of tokens a second of naive and fast
PUBLISHED_ENCODING = [
    ("TinyStories train, 2.23 GB", 2494.6, 15_067),
    ("TinyStories valid, 21 MB", 1142, 9144),
    ("OpenWebText, 11.1 GB", 1246, 12_843),
]


class Rows:
    """Medians over the rounds, of the rows of a part, method, size, vocabulary and number of processes."""

    def __init__(self, results: dict):
        self.rows = list(results["rows"].values())

    def values(self, **wanted) -> list[dict]:
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def sizes(self) -> list[int]:
        return sorted({row["megabytes"] for row in self.rows})

    def vocabularies(self, part: str) -> list[int]:
        return sorted({row["vocab_size"] for row in self.values(part=part, method="ours")})

    def processes(self) -> list[int]:
        return sorted({row["processes"] for row in self.values(method="ours")})

    def median(self, value, **wanted) -> float | None:
        found = self.values(**wanted)
        return median(map(value, found)) if found else None


def naive_seconds(row: dict, vocab_size: int) -> float:
    """Seconds of the textbook's training: counting, and its timed merges, linear between the windows."""
    windows = {int(first): seconds for first, seconds in row["windows"].items()}
    each = np.interp(np.arange(vocab_size - RESERVED), list(windows), list(windows.values()))
    return row["count_seconds"] + float(each.sum())


def number(value: float | None, digits: int = 3) -> str:
    """So many digits, with commas; empty without a value."""
    if value is None:
        return ""
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{number(seconds)} s" if seconds < 600 else f"{number(seconds / 3600, 2)} h"


def training_table(rows: Rows) -> str:
    """Naive against ours, at the most processes."""
    header = ["text", "vocabulary", "pre-tokenization, naive", "ours", "merges/s, naive", "ours", "in all, naive"]
    header += ["ours", "naive / ours", "`tokenizers`", "peak memory of the three"]
    lines, most = [], max(rows.processes())
    for size in rows.sizes():
        for v in rows.vocabularies("train"):
            at = {"part": "train", "megabytes": size}
            ours = at | {"method": "ours", "vocab_size": v, "processes": most}
            if not rows.values(**ours):
                continue  # of a call that has not come so far
            count, merge = (rows.median(lambda row, n=n: row[n], **ours) for n in ("count_seconds", "merge_seconds"))
            merges = rows.values(**ours)[0]["merges"]
            library = at | {"method": "tokenizers", "vocab_size": v}
            naive = rows.values(**at, method="naive")
            total = naive_seconds(naive[0], v) if naive else None
            peaks = [naive[0]["peak_mb"] if naive else None]
            peaks += [rows.median(lambda row: row["peak_mb"], **each) for each in (ours, library)]
            lines.append(
                [
                    f"{size} MB",
                    f"{v:,}",
                    duration(naive[0]["count_seconds"]) if naive else "",
                    duration(count),
                    number((v - RESERVED) / (total - naive[0]["count_seconds"])) if naive else "",
                    number(merges / merge),
                    f"{duration(total)} (extrapolated)" if naive else "",
                    duration(count + merge),
                    number(total / (count + merge)) if naive else "",
                    duration(rows.median(lambda row: row["seconds"], **library)),
                    ", ".join(number(peak) for peak in peaks) + " MB",
                ]
            )
    return markdown_table(header, lines)


def encoding_table(rows: Rows) -> str:
    """Thousands of tokens a second."""
    names, counts = ("ours", "ours without tiktoken"), rows.processes()
    header = ["text", "vocabulary", "naive, 1 process", *(f"{name}, {count}" for name in names for count in counts)]
    header += [f"`tokenizers`, {max(counts)}", f"ours, {max(counts)} / naive", "peak memory of ours"]
    lines = []
    for size in rows.sizes():
        for v in rows.vocabularies("encode"):

            def speed(method, count, size=size, v=v):
                at = {"part": "encode", "method": method, "vocab_size": v, "processes": count, "megabytes": size}
                return rows.median(lambda row: row["tokens"] / row["seconds"] / 1000, **at)

            best = {"part": "encode", "method": "ours", "megabytes": size, "vocab_size": v, "processes": max(counts)}
            if not rows.values(**best):
                continue
            naive = rows.median(
                lambda row: row["tokens"] / row["seconds"] / 1000, part="encode", method="naive", vocab_size=v
            )
            cells = [f"{size} MB", f"{v:,}", number(naive)]
            cells += [number(speed(name, count)) for name in names for count in counts]
            cells.append(number(speed("tokenizers", max(counts))))
            cells.append(number(speed("ours", max(counts)) / naive) if naive else "")
            lines.append([*cells, f"{number(rows.median(lambda row: row['peak_mb'], **best))} MB"])
    return markdown_table(header, lines)


def processes_table(rows: Rows) -> str:
    """What more processes bring: seconds of pre-tokenization, and of encoding."""
    counts, lines = rows.processes(), []
    header = ["text", "what", *(f"{count}" for count in counts), f"1 / {max(counts)}"]
    middle = rows.vocabularies("train")[len(rows.vocabularies("train")) // 2]
    parts = [("pre-tokenization", "train", "ours", "count_seconds")]
    parts += [("encoding", "encode", "ours", "seconds")]
    parts += [("encoding without tiktoken", "encode", "ours without tiktoken", "seconds")]
    for size in rows.sizes():
        for title, part, method, value in parts:
            at = {"part": part, "method": method, "megabytes": size, "vocab_size": middle}
            taken = [rows.median(lambda row, value=value: row[value], **at, processes=count) for count in counts]
            if None not in taken:
                lines.append([f"{size} MB", title, *map(duration, taken), number(taken[0] / taken[-1])])
    return markdown_table(header, lines, align="llr")


def published_tables() -> list[str]:
    training = [
        [text, f"{v:,}", *(number(value, 4) for value in (*naive, *fast)), f"{ratio}"]
        for text, v, naive, fast, ratio in PUBLISHED_TRAINING
    ]
    header = ["text", "vocabulary", "naive: pre-tokenization (s)", "merges/s", "in all (s)"]
    header += ["fast: pre-tokenization (s)", "merges/s", "in all (s)", "naive / fast"]
    server = [[text, f"{v:,}", f"{n:,}", f"{a} s", f"{b} s", f"{gb} GB"] for text, v, n, a, b, gb in PUBLISHED_SERVER]
    encoding = [[text, number(a, 5), number(b, 5), number(b / a)] for text, a, b in PUBLISHED_ENCODING]
    return [
        markdown_table(header, training),
        markdown_table(
            ["text", "vocabulary", "distinct pre-tokens", "pre-tokenization", "merges", "peak memory"], server
        ),
        markdown_table(["text", "naive, thousands of tokens/s", "fast", "fast / naive"], encoding),
    ]


def write_tables(results: dict, path: Path) -> None:
    """Write all tables, as Markdown."""
    rows = Rows(results)
    texts = {
        size: next((row for row in rows.values(part="train", method="ours", megabytes=size)), None)
        for size in rows.sizes()
    }
    facts = [
        f"{size} MB: {row['pretokens']:,} pre-tokens, {row['distinct']:,} of them distinct."
        for size, row in texts.items()
        if row
    ]
    laptop, server, encoding = published_tables()
    parts = ["## Training", " ".join(facts), training_table(rows), "## Encoding, thousands of tokens a second"]
    parts += [encoding_table(rows), "## By number of processes", processes_table(rows)]
    parts += ["## Published: training on a laptop, 19 processes", laptop]
    parts += ["## Published: training on a server, 16 processes", server]
    parts += ["## Published: encoding, all processes", encoding]
    atomic_write_text(path, "\n\n".join(parts) + "\n")
