"""Writes the numbers of this study, from the folders of its runs: `rows.json`, `tables.md` and the curves.

python results/gsm8k_smollm2/report.py outputs/gsm8k_smollm2 results/gsm8k_smollm2
"""

import sys
from pathlib import Path
from statistics import fmean

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.evaluation.statistics import paired_difference
from hf_evidenceflow.files import read_json, read_json_lines
from hf_evidenceflow.report.curves import load_log_history, plot_training_curves
from hf_evidenceflow.report.tables import markdown_table


GRADERS = ("strict", "flexible", "hrpo_legacy", "math_verify")
CURVES = ("reward", "completions/mean_length", "entropy", "thinking/hidden_ratio", "thinking/entropy", "unparsable")
STARTS = {"easy": "easy-start-merged", "latent": "latent-start-merged", "gsm8k": "start-merged"}
PARTS = 20  # steps that the first and the last reward are the mean of


def evaluations(out: Path) -> dict[tuple[str, str], dict]:
    """Metrics by (kind, model), of what is finished."""
    found = sorted(out.glob("eval/*/*/done"))
    return {(path.parts[-3], path.parts[-2]): read_json(path.with_name("metrics.json")) for path in found}


def scores(out: Path, kind: str, model: str, grader: str) -> list[float]:
    """By problem."""
    rows = read_json_lines(out / "eval" / kind / model / "greedy.jsonl")
    return [row["scores"][grader] for row in sorted(rows, key=lambda row: row["id"])]


def differences(out: Path, done) -> list[dict]:
    """Pairs of two models on the same problems: each model and the start, and what thinks and GRPO of its seed."""
    pairs = []
    for kind, model in done:
        task, part = kind.split("-")
        if part == "pass8" or not model.startswith("rl-"):
            continue
        trained, _, seed = model.removeprefix("rl-").split("-")
        base = kind if part in ("400", "full") else f"{task}-400"
        start = STARTS[trained]
        firsts = [(base, start), (base, f"rl-{trained}-grpo-{seed}"), (base, model)]
        pairs += [(first, (kind, model)) for first in firsts if first in done and first != (kind, model)]
    return [
        {
            "first": "/".join(first),
            "second": "/".join(second),
            **{
                grader: paired_difference(scores(out, *first, grader), scores(out, *second, grader))._asdict()
                for grader in GRADERS
            },
        }
        for first, second in pairs
    ]


def training(folder: Path) -> dict:
    """What a run of reinforcement learning logged."""
    log = [row for row in load_log_history(folder) if "reward" in row]

    def mean(key, rows=log):
        values = [row[key] for row in rows if key in row]
        return fmean(values) if values else None

    return {
        "run": folder.name,
        "finished": (folder / "done").exists(),
        "steps": len(log),
        "seconds_a_step": mean("step_time"),
        "reward_first": mean("reward", log[:PARTS]),
        "reward_last": mean("reward", log[-PARTS:]),
        "groups_without_signal": mean("frac_reward_zero_std"),
        "unparsable_last": mean("unparsable", log[-PARTS:]),
        "length_first": mean("completions/mean_length", log[:PARTS]),
        "length_last": mean("completions/mean_length", log[-PARTS:]),
        "entropy_first": mean("entropy", log[:PARTS]),
        "entropy_last": mean("entropy", log[-PARTS:]),
        "hidden_ratio_first": mean("thinking/hidden_ratio", log[:PARTS]),
        "hidden_ratio_last": mean("thinking/hidden_ratio", log[-PARTS:]),
        "parity_gap_mean": mean("thinking/parity_gap_mean"),
        "tokens": log[-1].get("num_tokens") if log else None,
    }


def shown(value, digits: int = 3) -> str:
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if text.startswith("0.") else text.replace("-0.", "-.")


def accuracy_rows(done: dict) -> list[list[str]]:
    rows = []
    for (kind, model), metrics in done.items():
        for decoding, measure in (("greedy", "accuracy"), ("sampled", "pass@1"), ("sampled", "pass@8")):
            if decoding in metrics and (decoding == "sampled" or not kind.endswith("pass8")):
                graders = metrics[decoding]["graders"]
                cells = [
                    f"{shown(m['value'])} [{shown(m['low'])}, {shown(m['high'])}]"
                    for m in (graders[grader][measure] for grader in GRADERS)
                ]
                unread = shown(graders["strict"]["unparsable_share"])
                length = shown(metrics[decoding]["mean_completion_tokens"], 0)
                rows.append([f"{kind}, {measure}", model, str(metrics["problems"]), *cells, unread, length])
    return rows


def difference_rows(pairs: list[dict]) -> list[list[str]]:
    return [
        [
            f"{pair['second']} - {pair['first']}",
            f"{m['value']:+.3f}",
            f"[{m['low']:+.3f}, {m['high']:+.3f}]",
            shown(m["p_value"]),
        ]
        for pair in pairs
        for m in [pair["strict"]]
    ]


def training_rows(runs: list[dict]) -> list[list[str]]:
    keys = ("reward", "length", "entropy", "hidden_ratio")
    return [
        [
            run["run"],
            str(run["steps"]),
            shown(run["seconds_a_step"], 0),
            *(
                f"{shown(run[f'{key}_first'], 0 if key == 'length' else 3)} to "
                f"{shown(run[f'{key}_last'], 0 if key == 'length' else 3)}"
                if run[f"{key}_first"] is not None
                else ""
                for key in keys
            ),
            shown(run["groups_without_signal"]),
            shown(run["unparsable_last"]),
            shown(run["parity_gap_mean"]),
        ]
        for run in runs
    ]


def main(out: str, results: str) -> None:
    out, results = Path(out), Path(results)
    done = evaluations(out)
    folders = [path for path in sorted(out.glob("rl-*")) if [*path.glob("checkpoint-*"), *path.glob("done")]]
    runs, pairs = [training(folder) for folder in folders], differences(out, done)
    rows = [{"kind": kind, "model": model, **metrics} for (kind, model), metrics in done.items()]
    atomic_write_json(results / "rows.json", {"evaluations": rows, "differences": pairs, "training": runs})
    tables = [
        markdown_table(
            ["set", "model", "problems", *GRADERS, "unparsable", "tokens"], accuracy_rows(done), align="llr"
        ),
        markdown_table(["strict", "difference", "95 % interval", "p"], difference_rows(pairs)),
        markdown_table(
            [
                "run",
                "steps",
                "seconds a step",
                "reward",
                "tokens",
                "entropy",
                "hidden ratio",
                "groups without signal",
                "unparsable",
                "parity gap",
            ],
            training_rows(runs),
        ),
    ]
    atomic_write_text(results / "tables.md", "\n\n".join(tables) + "\n")
    for task in STARTS:
        logs = {path.name.removeprefix(f"rl-{task}-"): path for path in folders if path.name.startswith(f"rl-{task}-")}
        histories = {name: load_log_history(path) for name, path in logs.items()}
        known = [key for key in CURVES if any(key in row for rows in histories.values() for row in rows)]
        if known:
            plot_training_curves(histories, results / f"curves_{task}.png", keys=known)


if __name__ == "__main__":
    main(*sys.argv[1:])
