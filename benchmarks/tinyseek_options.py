"""Options of the TinySeek benchmarks for the model's size, by default the published one."""

import argparse
from typing import Any

import timing
from tinyseek_reference import PUBLISHED


# Option -> key of the published JSON file
SIZES = {
    "hidden_size": "d_model",
    "heads": "n_head",
    "latent_size": "d_c",
    "experts": "other_experts",
    "shared_experts": "shared_experts",
    "experts_per_token": "keep",
    "loops": "n_layer",
    "vocab_size": "vocab_size",
}


def make_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options of all TinySeek benchmarks: output, rounds, threads, and the model's size."""
    parser = timing.make_parser(description, rounds)
    for option, key in SIZES.items():
        parser.add_argument(f"--{option}", type=int, default=PUBLISHED[key], help="default: %(default)s, as published")
    return parser


def published_config(args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """The published configuration at the size that the options ask for."""
    return PUBLISHED | {key: getattr(args, option) for option, key in SIZES.items()} | changes
