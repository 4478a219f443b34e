"""What to say about an option that is not there: the nearest ones, or ours for a flag of the published scripts."""

import difflib
from collections.abc import Collection, Sequence

from hf_evidenceflow.recipes.command_line.launch_options import FLAGS, VALUES, launch_option


# Flags of the published HRPO scripts, and of habit, whose names differ here
PUBLISHED = {
    "model_name": "--model_name_or_path {}",
    "lora_rank": "--lora_r {} --use_peft true",
    "lr": "--learning_rate {}",
    "lr_residual_gate": "--lr_thinking_residual_gate {}",
    "lr_residual_Lambda": "--lr_thinking_residual_Lambda {}",
    "residual_r_min": "--thinking_residual_r_min {}",
    "residual_r_max": "--thinking_residual_r_max {}",
    "group_size": "--num_generations {}",
    "optimizer": "--optim {}",
    "warmup_ratio": "--warmup_steps {}",
    "dataset_root": "--dataset_name_or_path {}",
}


def nearest(name: str, known: Collection[str], count: int = 3) -> list[str]:
    """The names most like a name, best first: alike as a whole, then those that hold it or begin like it."""
    by_lower = {other.lower(): other for other in known}
    close = [by_lower[other] for other in difflib.get_close_matches(name.lower(), by_lower, count, cutoff=0.7)]
    parts = [other for other in known if len(name) > 1 and name.lower() in other.lower() and other not in close]
    return (close + sorted(parts, key=len))[:count]


def about_unknown(name: str, value: str | None, known: Collection[str]) -> str:
    """
    What to say about an option that is not there.

    Args:
        name (`str`):
            The option, without dashes.
        value (`str`, *optional*):
            The value it was given.
        known (`Collection[str]`):
            The options there are.

    Returns:
        `str`: a sentence.
    """
    given = f"`--{name}{f' {value}' if value is not None else ''}`"
    name = name.replace("-", "_")
    ours = PUBLISHED.get(name)
    if ours is not None and all(part[2:] in known for part in ours.split() if part.startswith("--")):
        written = ours.format(value if value is not None else "VALUE")
        share = " (below 1: a share of all steps)" if name == "warmup_ratio" else ""
        return f"The published {given} is `{written}` here{share}."
    if launch_option(f"--{name}"):
        return f"{given} is an option of `accelerate launch`, which takes it before the recipe's path."
    names = nearest(name, known) or nearest(name, VALUES + FLAGS)
    return f"There is no option {given}." + (f" Nearest: {_listed(names)}." if names else "")


def split_unknown(arguments: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """What argparse left over, as pairs of option and value; a value without an option has None before it."""
    pairs: list[tuple[str | None, str | None]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            pairs.append((name, value if equals else None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], argument)
        else:
            pairs.append((None, argument))
    return pairs


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`--{name}`" for name in names)
