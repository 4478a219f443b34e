"""Training curves of one or several runs as a picture."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.completion_log import read_jsonl
from ..files import check_fields, read_json
from .figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


# Logged key -> (title of the panel, label of the y axis with its unit).
KNOWN_CURVES = {
    "reward": ("Reward", "mean per completion"),
    "loss": ("Loss", "per update"),
    "completions/mean_length": ("Completion length", "tokens"),
    "entropy": ("Entropy of the next token", "nats"),
    "unparsable": ("Answers that cannot be read", "share of the completions"),
    "kl": ("KL to the reference model", "nats per token"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", "of the first group"),
    "eval_loss": ("Held-out loss", "nats per token"),
    "eval_perplexity": ("Held-out perplexity", "exp of the loss"),
    "evidence_flow/loss": ("Loss_p", "sum over layers, unweighted"),
    "evidence_flow/weight": ("Weight of Loss_p", "factor"),
    "aux_loss": ("Load balance", "auxiliary loss"),
    "balance_loss": ("Load balance", "auxiliary loss"),
    "router_balance": ("Balance of the experts (published: Lexp)", "0 is even; mean over layer calls"),
    "router_effective_experts": ("Effective experts", "exp of the load's entropy"),
    "router_load_entropy": ("Entropy of the experts' load", "share of the largest; 1 is even"),
    "router_max_load": ("Load of the busiest expert", "multiple of the mean"),
    "router_dead_experts": ("Experts without a token", "share"),
    "derived/loss": ("Loss, without Loss_p", "nats per token"),
    "derived/perplexity": ("Perplexity", "exp of the loss"),
    "derived/perplexity_cv": ("Rolling CV of the perplexity", "standard deviation / mean"),
    "rollout/tokens_per_second": ("Speed of the rollout", "tokens per second"),
    "latent/kl": ("Thoughts: KL to their targets", "nats per thought"),
    "latent/target_share": ("Thoughts: probability on the targets", "share"),
    "latent/answer_loss": ("Loss of the text after the thoughts", "nats per token"),
    "latent/stage": ("Curriculum", "steps that are thoughts"),
    "latent/distance": ("Distance to the chain's states", "mean over layers"),
    "latent/chain_loss": ("Loss of the chain", "nats per token"),
    "thinking/gate_mean": ("Thinking: gate", "mean of r"),
    "thinking/hidden_ratio": ("Thinking: hidden ratio", "mean of sqrt(1 - a²)"),
    "thinking/token_share": ("Thinking: tokens", "share of the completion"),
    "thinking/parity_gap": ("Thinking: parity gap", "largest difference, nats"),
    "thinking/parity_gap_mean": ("Thinking: mean parity gap", "nats"),
    "thinking/projection_norm": ("Thinking: projection", "norm of the weights"),
    "thinking/projection_change": ("Thinking: change of the projection", "norm since the start"),
    "thinking/projection_grad_norm": ("Thinking: gradient of the projection", "norm"),
    "thinking/state_cosine": ("Thinking: projected and weighted state", "cosine"),
}
LATENT_KEYS = tuple(key for key in KNOWN_CURVES if key.startswith("latent/"))
# What is drawn unless asked otherwise; `thinking/...` keys are added to it.
DEFAULT_KEYS = ("reward", "loss", "completions/mean_length", "entropy", *LATENT_KEYS)
THINKING_PREFIX = "thinking/"
# Exact, and bent by a mean
_SCHEDULES = ("learning_rate", "latent/stage", "evidence_flow/weight", "derived/perplexity_cv")


def load_log_history(path: str | os.PathLike) -> list[dict[str, Any]]:
    """
    Read the log of a finished or running training.

    Args:
        path (`str` or `os.PathLike`):
            A `trainer_state.json`, a `.jsonl` file with one logged row a line, a checkpoint folder, or an output
            folder (then its own state, its `log.jsonl`, or the newest checkpoint's state).

    Returns:
        `list[dict]`: What `trainer.state.log_history` held.

    Raises:
        FileNotFoundError: If there is no log.
    """
    path = Path(path)
    file = path / "trainer_state.json" if path.is_dir() else path
    if not file.exists() and path.is_dir():
        file = max(path.glob("checkpoint-*/trainer_state.json"), key=_step_of, default=file)
        file = path / "log.jsonl" if (path / "log.jsonl").exists() else file
    if not file.exists():
        raise FileNotFoundError(
            f"There is no `{file}`. Pass a trainer_state.json, a log.jsonl, a checkpoint or an output folder."
        )
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    state = read_json(file, allow_nan=True)
    check_fields(state, file, log_history=list)
    return state["log_history"]


def plot_training_curves(
    log_histories: Mapping[str, Sequence[Mapping[str, Any]] | str | os.PathLike],
    path: str | os.PathLike,
    keys: Sequence[str] | None = None,
    smooth: int | None = None,
    title: str | None = None,
) -> Path:
    """
    Draw the curves of one or several runs into a PNG, one panel per quantity, the runs laid over each other.

    Args:
        log_histories (`Mapping[str, Sequence[Mapping] | str | os.PathLike]`):
            `trainer.state.log_history` by the name of the run, or a path for [`load_log_history`].
        path (`str` or `os.PathLike`):
            PNG to write. Missing parent folders are made.
        keys (`Sequence[str]`, *optional*):
            Logged keys to draw. If `None`, reward, loss, completion length, entropy and all `thinking/...` keys that
            some run has logged.
        smooth (`int`, *optional*):
            Steps of the log that the bold line averages over, centred; the raw values stay visible as a faint line. If
            `None`, a tenth of each curve. `1` draws the raw values only, as schedules always are.
        title (`str`, *optional*):
            Title of the picture.

    Returns:
        `Path`: The path written.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw, or a key in `keys` is in no log.

    Example:

    ```python
    >>> plot_training_curves({"GRPO": grpo.state.log_history, "HRPO": "outputs/hrpo"}, "curves.png")
    ```
    """
    if smooth is not None and smooth < 1:
        raise ValueError(f"`smooth` must be at least 1 (no smoothing), got {smooth}.")

    runs = {
        name: load_log_history(history) if isinstance(history, (str, os.PathLike)) else history
        for name, history in log_histories.items()
    }
    keys = _choose_keys(runs, keys)
    smoothed = False
    columns = min(len(keys), 2 if len(keys) in (2, 4) else 3)
    rows = math.ceil(len(keys) / columns)

    figure = new_figure((4.6 * columns + 0.4, 3.1 * rows + 0.8))
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, key in zip(panels, keys):
        for index, history in enumerate(runs.values()):
            colour = COLOURS[index % len(COLOURS)]
            style = LINE_STYLES[index % len(LINE_STYLES)]
            steps, values = curve(history, key)
            width = 1 if key in _SCHEDULES else smooth or max(1, len(values) // 10)
            _draw_curve(panel, steps, values, colour, style, width)
            smoothed |= width > 1
        heading, unit = KNOWN_CURVES.get(key, (_heading(key), "value"))
        finish_panel(panel, heading, "optimizer step", unit)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    handles = [
        panels[0].plot([], [], color=COLOURS[i % len(COLOURS)], linestyle=LINE_STYLES[i % len(LINE_STYLES)])[0]
        for i in range(len(runs))
    ]
    labels = list(runs)
    if smoothed:
        handles.append(panels[0].plot([], [], color=COLOURS[0], alpha=0.25, linewidth=0.9)[0])
        labels.append("as logged (bold: running mean)")
    columns = max(1, min(len(labels), 120 // (8 + max(map(len, labels)))))  # as many as the width of the figure holds
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=10)
    if title is not None:
        figure.suptitle(title, fontsize=13)

    return save_figure(figure, path)


def curve(log_history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """
    Steps and values of a logged key, in the order of the steps. A step that was logged twice, as around a resume,
    counts once, with its last value; values that are no finite numbers are left out.
    """
    points = {}
    for entry in log_history:
        value = entry.get(key)
        if "step" in entry and isinstance(value, (int, float)) and math.isfinite(value):
            points[int(entry["step"])] = float(value)
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def _choose_keys(runs: Mapping[str, Sequence[Mapping[str, Any]]], keys: Sequence[str] | None) -> list[str]:
    logged = {key for history in runs.values() for key in set().union(*history) if curve(history, key)[0]}
    if keys is not None:
        if missing := [key for key in keys if key not in logged]:
            raise ValueError(f"No log has {missing}. Logged keys: {sorted(logged - {'step', 'epoch'})}.")
        chosen = list(keys)
    else:
        chosen = [key for key in DEFAULT_KEYS if key in logged]
        chosen += sorted(key for key in logged if key.startswith(THINKING_PREFIX))
    if not chosen:
        raise ValueError(
            f"There is nothing to draw for the runs {list(runs)}: their logs hold "
            f"{sorted(logged - {'step', 'epoch'})}. Name keys with `keys`, or lower `logging_steps`."
        )
    return chosen


def _draw_curve(panel, steps, values, colour, style, smooth):
    marker = "o" if len(values) < 3 else None
    if smooth == 1:
        panel.plot(steps, values, color=colour, linestyle=style, linewidth=1.6, marker=marker)
        return
    panel.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9)
    panel.plot(steps, centred_mean(values, smooth), color=colour, linestyle=style, linewidth=2.0, marker=marker)


def centred_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of the values in a window around each, which is cut off at the ends."""
    before, after = (width - 1) // 2, width // 2
    windows = [values[max(0, i - before) : i + after + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _heading(key: str) -> str:
    words = key.removeprefix(THINKING_PREFIX).replace("_", " ").replace("/", ", ")
    return f"Thinking: {words}" if key.startswith(THINKING_PREFIX) else words.capitalize()


def _step_of(state_file: Path) -> int:
    step = state_file.parent.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1
