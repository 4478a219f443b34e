"""
Every committed picture: `REDRAWN` says how each is drawn from committed rows, `NOT_REDRAWN` why the others are not.

A picture of the first kind is drawn again by `tests/docs/test_pictures.py`, which reads its artists; those of the
second kind are drawn, from smaller runs, by the tests that they name, in which their artists are read too.
"""

import csv
import importlib
import json
import sys
from functools import partial
from types import SimpleNamespace

from repository import BENCHMARKS, RECIPES, ROOT

from hf_evidenceflow.files import read_json_lines


RESULTS, COURSE = ROOT / "results", "docs/assets/course"
_TINYSEEK_CURVES = (
    *("loss", "loss_p", "perplexity", "balance", "learning_rate", "eval_perplexity", "cv", "log_fit"),
    *("loss_full", "loss_p_full", "perplexity_full", "balance_full", "learning_rate_full"),
)


def _json(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _recipe(name):
    return importlib.import_module(f"hf_evidenceflow.recipes.{name}")


def _script(folder, name):
    """A module of a folder of scripts, which import their neighbors."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def ablation(folder, path):
    report = _recipe("ablation_report")
    report.draw(report.load_runs(ROOT / folder), path, 25)


def _study(folder, config):
    grid = _recipe("experiments.grid_file").load_grid(RECIPES / "configs" / f"{config}.yaml")
    return grid, read_json_lines(ROOT / folder / "results.jsonl")


def differences(folder, config, path):
    grid, rows = _study(folder, config)
    plan = _recipe("experiments.plan").Plan()
    summary = _recipe("experiments.summary").summarize(grid, plan, rows, str(path.parent))
    _recipe("experiments.plots").plot_differences(summary, path)


def curves(folder, config, level, path):
    grid, rows = _study(folder, config)
    rows = rows if level == "all" else [row for row in rows if level in row["cell"].values()]
    drawn = _recipe("experiments.plots").plot_curves(grid, rows, path.parent)
    assert drawn[level] == path


def layers(file, group, path):
    _recipe("experiments.layer_report").plot_layers(read_json_lines(ROOT / file), group, path)


def accuracy(study, path):
    grid, rows = _study(f"results/latent/{study}", f"compare_latent/{study}")
    report = _recipe("experiments.latent_report")
    means = [
        report.arm_means(grid, group, arm, runs)
        for group, arms in report.by_group(grid, rows).items()
        for arm, runs in arms.items()
    ]
    report.plot_accuracy(grid, means, path)


def parameters(name, path):
    """From the table, which has what is drawn: mean, least and largest value of each layer."""
    rows = []
    for line in (RESULTS / "crosslayer" / "parameters" / f"{name}.md").read_text(encoding="utf-8").splitlines()[4:]:
        layer, parameter, _, mean, _, low, high, start = (cell.strip() for cell in line.strip("|").split("|"))
        summary = {"mean": float(mean), "min": float(low), "max": float(high)}
        rows.append(SimpleNamespace(layer=int(layer), name=parameter[1:-1], summary=summary, initial=[float(start)]))
    _recipe("experiments.extra_parameter_report").plot_parameters(rows, path, name)


def audit(path):
    summary = _json("results/audit_smollm2/audit.json")["interventions"]
    from hf_evidenceflow.evaluation.audit_page import plot_audit

    costs = {kind: row["difference"] for kind, row in summary.items() if "difference" in row}
    read = SimpleNamespace(
        summary=lambda: summary, costs=lambda kind: costs[kind]["value"] > 0 and costs[kind]["p_holm"] < 0.05
    )
    plot_audit(read, path)


def ends(path):
    figures = _script(ROOT / "docs", "gallery_figures")
    figures.draw_ends(figures.study_ends(), path)


def tinyseek_curves(name, path):
    figures = _script(ROOT / "docs", "gallery_figures")
    figures.draw(figures.read_logs(), path.parent, only=name)


def set_tracking(path):
    demo = _recipe("demo_latent")
    metrics = _json("results/demo/metrics.json")
    interval = importlib.import_module("hf_evidenceflow.evaluation.statistics").Interval
    scores = {name: interval(**metrics[name]["accuracy"]) for name in demo.BARS}
    demo.draw(scores, demo.LatentDemoArguments(), path)


def training_curves(path):
    from hf_evidenceflow.report.curves import plot_training_curves

    logs = {name: RESULTS / "gsm8k_scratch" / f"{name.lower()}_trainer_state.json" for name in ("GRPO", "HRPO")}
    keys = ["reward", "completions/mean_length", "entropy", "unparsable"]
    plot_training_curves({name: _json(log)["log_history"] for name, log in logs.items()}, path, keys=keys)


def crosslayer_cost(path):
    _script(BENCHMARKS, "crosslayer_cost").draw(_json("results/crosslayer/cost.json")["points"], path)


def tinyseek_scaling(path):
    measured = _json("results/tinyseek/scaling.json")
    counted = {
        part: {int(count): tables for count, tables in measured[part].items()}
        for part in ("experts", "loops", "contexts")
    }
    _script(BENCHMARKS, "tinyseek_scaling").draw(counted, path)


def step_growth(path):
    files = ("step", "step_growth_gsm8k", "step_growth_passages")
    measured = [str(RESULTS / "rollouts" / f"{name}.json") for name in files]
    _script(BENCHMARKS, "rollout_step_plot").main([*measured, "--output", str(path)])


def norm_penalty(path):
    report = _script(RESULTS / "norm_penalty", "report")
    measures = {}
    for row in read_json_lines(RESULTS / "norm_penalty" / "measures.jsonl"):
        measures.setdefault(row["id"], []).append(row)
    rows = read_json_lines(RESULTS / "norm_penalty" / "results.jsonl")
    report.plot_ranks([row | {"measures": measures[row["id"]]} for row in rows if row["id"] in measures], path)


def compression(path):
    quantized = _json("results/smollm2_tools/compression.json")["quantized"]
    plots = _recipe("course.compression.compression_plots")
    rows = plots.PictureRows("compression", [0], {}, **plots.compression_rows(quantized, {}, {}))
    plots.plot_compression(rows, path)


def early_exit(path):
    from hf_evidenceflow.early_exit.report import draw_exits

    measured = _json("results/smollm2_tools/early_exit.json")
    draw_exits(measured["exits"], measured["thresholds"], path)


def probe_layers(path):
    columns = {}
    for label, name in (("text", "probe_texts"), ("its words in random order", "probe_control")):
        with open(RESULTS / "smollm2_tools" / f"{name}.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns[label] = {key: [float(row[key] or "nan") for row in rows] for key in rows[0]}
    _recipe("probe").plot_layers(columns, path)


def published_laws(path):
    run, loss = _recipe("course.scaling_laws.run"), _recipe("course.scaling_laws.parametric_loss")
    args = run.ScalingLawsArguments()
    presets = {args.preset: loss.PRESETS[args.preset], **loss.PRESETS}
    _recipe("course.scaling_laws.scaling_plots").plot_scaling(presets, args.published_budgets, None, path)


def course(chapter, path, files="seed_*.json"):
    """From the rows of one seed or of several."""
    runs = sorted((RESULTS / "course" / chapter).glob(files))
    pictures = _recipe("course.shared.picture_rows")
    rows = pictures.merge_seeds({run.name: pictures.read_picture(run) for run in runs})
    _recipe("course_picture").draw(rows, path)


def course_adapters(path):
    rows = _json("results/course/peft_methods/seed_0.json")["once"]["adapters"]
    _recipe("course.peft_methods.adapter_plots").plot_adapters(rows, path)


_STUDIES = {
    "results/crosslayer": "run_experiment/crosslayer",
    "results/crosslayer/long": "run_experiment/crosslayer_long",
    "results/loss_p/llama": "run_experiment/loss_p",
    "results/loss_p/post_norm": "run_experiment/loss_p_post_norm",
    "results/text/loss_p": "run_experiment/text_loss_p",
    "results/tinyseek/study": "run_experiment/tinyseek",
    "results/hrpo_vs_grpo/methods": "compare/methods",
}
_CURVES = {
    "results/crosslayer/long": ["all"],
    "results/loss_p/llama": ["llama_tied", "llama_untied"],
    "results/loss_p/post_norm": ["gpt_post_norm"],
    "results/text/loss_p": ["all"],
    "results/tinyseek/study": ["looped_post", "looped_pre"],
}
_LAYERS = {
    "results/loss_p/llama": ["llama_tied, off", "llama_tied, on", "llama_untied, on"],
    "results/loss_p/post_norm": ["gpt_post_norm, on"],
    "results/tinyseek/study": ["looped_post", "looped_pre"],
    "results/smollm2_tools/objectives": ["smollm2_135m"],
    "results/text/loss_p": ["all"],
}
# Picture of the course -> its chapter, and how it is drawn once a row of that is committed
_CHAPTERS = [path.stem for path in (RECIPES / "configs" / "course").glob("*.yaml") if "_text" not in path.stem]
_OF_CHAPTERS = {chapter: (chapter, partial(course, chapter)) for chapter in _CHAPTERS}
_OF_CHAPTERS["adapters"] = ("peft_methods", course_adapters)
_WITH_ROWS = {path.parent.name for path in (RESULTS / "course").glob("*/seed_*.json")}
_LATENT = ("codi_tuning", "headline", "methods", "moves", "rl", "rl_long", "tuning", "width", "words")

REDRAWN = {
    **{
        f"{folder}/comparisons.png": partial(ablation, folder)
        for folder in ("results/ablation", "results/ablation/learning_rate")
    },
    **{f"{folder}/differences.png": partial(differences, folder, config) for folder, config in _STUDIES.items()},
    **{
        f"{folder}/curves_{level}.png": partial(curves, folder, _STUDIES[folder], level)
        for folder, levels in _CURVES.items()
        for level in levels
    },
    **{
        f"{folder}/layers_{group.replace(', ', '_')}.png": partial(layers, f"{folder}/layers.jsonl", group)
        for folder, groups in _LAYERS.items()
        for group in groups
    },
    **{f"results/latent/{study}/accuracy.png": partial(accuracy, study) for study in _LATENT},
    **{f"results/crosslayer/parameters/{name}.png": partial(parameters, name) for name in ("v4m4-on", "v4m4-off")},
    "docs/assets/gallery/ends.png": ends,
    **{f"docs/assets/gallery/{name}.png": partial(tinyseek_curves, name) for name in _TINYSEEK_CURVES},
    "docs/assets/latent_accuracy.png": set_tracking,
    "results/demo/latent_accuracy.png": set_tracking,
    "results/audit_smollm2/audit.png": audit,
    "results/crosslayer/cost.png": crosslayer_cost,
    "results/gsm8k_scratch/curves.png": training_curves,
    "results/norm_penalty/ranks.png": norm_penalty,
    "results/rollouts/step_growth.png": step_growth,
    "results/smollm2_tools/compression.png": compression,
    "results/smollm2_tools/early_exit.png": early_exit,
    "results/smollm2_tools/probe_control.png": probe_layers,
    "results/tinyseek/scaling.png": tinyseek_scaling,
    f"{COURSE}/scaling_laws_published.png": published_laws,
    f"{COURSE}/scaling_laws_text.png": partial(course, "scaling_laws", files="text_picture.json"),
    **{f"{COURSE}/{name}.png": draw for name, (chapter, draw) in _OF_CHAPTERS.items() if chapter in _WITH_ROWS},
}

_LOGS = "the logs of its runs, of which only tables are committed"
_TRAINED = "what an earlier form of the recipe trained in minutes; its tables are in docs/course.md"
_WEIGHTS = "weights, which are not committed"
_COURSE_TESTS = "tests/recipes/course"
_CURVE_TESTS = "tests/report/test_curves.py"

# Picture -> what it is drawn from, and the test that draws such a picture
NOT_REDRAWN = {
    **{
        f"results/hrpo_vs_grpo/{study}/learning_curves.png": (_LOGS, _CURVE_TESTS)
        for study in ("gates", "graph", "long_chains", "methods", "sums", "tight_budget")
    },
    **{
        f"results/{folder}/training_curves.png": (f"{_LOGS}; its x axes, optimizer steps, have no names", _CURVE_TESTS)
        for folder in ("ablation", "ablation/learning_rate")
    },
    "results/demo/reward_curves.png": (_LOGS, _CURVE_TESTS),
    "results/gsm8k_smollm2/curves_easy.png": (_LOGS, _CURVE_TESTS),
    "results/gsm8k_smollm2/curves_gsm8k.png": (_LOGS, _CURVE_TESTS),
    "results/smollm2_tools/probe_label_probability.png": (_WEIGHTS, "tests/probe/test_pictures.py"),
    f"{COURSE}/smollm2_weights.png": (_WEIGHTS, f"{_COURSE_TESTS}/compression"),
    f"{COURSE}/attention_masks.png": (_WEIGHTS, f"{_COURSE_TESTS}/seq2seq_pretraining"),
    f"{COURSE}/contextual_pretraining_text.png": (_LOGS, f"{_COURSE_TESTS}/contextual_pretraining"),
    **{
        f"{COURSE}/{name}.png": (_TRAINED, f"{_COURSE_TESTS}/{chapter}")
        for name, (chapter, _) in _OF_CHAPTERS.items()
        if chapter not in _WITH_ROWS
    },
}
# The pictures of the course's notebooks are made by its recipes, those of the others by cells of their own
NOTEBOOKS = {
    "docs/notebooks/course_*.ipynb": _COURSE_TESTS,
    "docs/notebooks/look_inside.ipynb": "tests/docs/test_notebooks.py",
    "docs/notebooks/train_hrpo.ipynb": "tests/docs/test_notebooks.py",
}
