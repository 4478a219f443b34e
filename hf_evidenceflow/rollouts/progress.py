"""Shows that a long rollout goes on: a bar in a terminal, else a line now and then."""

import sys
import time
from collections.abc import Sequence

import torch
from transformers import StoppingCriteria, TrainingArguments
from transformers.utils import logging


_FIRST_SECONDS = 5  # shorter rollouts show nothing
_LINE_SECONDS = 30


def shows_progress(args: TrainingArguments) -> bool:
    """Whether this process shows how far a trainer's rollout is."""
    return not args.disable_tqdm and args.process_index == 0


class RolloutProgress:
    """
    Counts the rows that have ended and the tokens so far; for a `with` block.

    Args:
        rows (`int`): rows of the rollout.
        enabled (`bool`): whether anything is shown.
        line_seconds (`float`, *optional*, defaults to `30`): seconds between two lines, outside of a terminal.
    """

    def __init__(self, rows: int, enabled: bool, line_seconds: float = _LINE_SECONDS):
        self.rows, self.enabled, self.line_seconds = rows, enabled, line_seconds
        self.ended = self.tokens = 0
        self.started = self.shown = time.perf_counter()
        in_terminal = enabled and sys.stderr.isatty()
        self.bar = logging.tqdm(
            total=rows, disable=not in_terminal, desc="Rollout", unit="row", leave=False, delay=_FIRST_SECONDS
        )
        self.lines = enabled and not in_terminal

    def update(self, ended: int, tokens: int) -> None:
        """Tell how many rows have ended, and tokens have been drawn, since the start."""
        self.tokens = tokens
        if ended != self.ended:
            self.bar.set_postfix_str(self.speed(), refresh=False)
            self.bar.update(ended - self.ended)
            self.ended = ended
        if self.lines and time.perf_counter() - self.shown >= self.line_seconds:
            self.shown = time.perf_counter()
            print(f"Rollout: {ended} of {self.rows} rows have ended, {self.speed()}", file=sys.stderr, flush=True)

    def speed(self) -> str:
        """Tokens so far and a second."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return f"{self.tokens:,} tokens, {self.tokens / seconds:.0f} a second"

    def __enter__(self) -> "RolloutProgress":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()


class StockLoopProgress(StoppingCriteria):
    """
    [`RolloutProgress`] of the stock loop of `generate`: a stopping criterion that ends nothing; for a `with` block.

    Args:
        eos_token_ids (`Sequence[int]`): tokens that end a row.
    """

    def __init__(self, eos_token_ids: Sequence[int]):
        self.eos_token_ids = torch.tensor(sorted(eos_token_ids))
        self.shown: RolloutProgress | None = None
        self.tokens = 0

    def __call__(self, input_ids, scores, **kwargs):
        if self.shown is None:
            self.shown = RolloutProgress(len(input_ids), enabled=True)
            self.running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self.eos_token_ids = self.eos_token_ids.to(input_ids.device)
        self.tokens += int(self.running.sum())
        self.running &= ~torch.isin(input_ids[:, -1], self.eos_token_ids)
        self.shown.update(len(input_ids) - int(self.running.sum()), self.tokens)
        return torch.zeros_like(self.running)

    def __enter__(self) -> "StockLoopProgress":
        return self

    def __exit__(self, *error) -> None:
        if self.shown is not None:
            self.shown.bar.close()
