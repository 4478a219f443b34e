"""Early exit for any causal LM: sweeps over exits, adaptive depth inside `generate`, and self-speculation."""

from .criteria import CRITERIA, EarlyExitConfig, confidence, relative_change
from .generation import EarlyExits, SimulatedExits, early_exit, simulate_early_exit
from .self_speculation import SelfSpeculation
from .speed import FULL_DEPTH, GreedyDecoding, Speed, in_turn
from .sweep import ExitQuality, exit_sweep, threshold_sweep
from .truncation import exit_at


__all__ = [
    "CRITERIA",
    "FULL_DEPTH",
    "EarlyExitConfig",
    "EarlyExits",
    "ExitQuality",
    "GreedyDecoding",
    "SelfSpeculation",
    "SimulatedExits",
    "Speed",
    "confidence",
    "early_exit",
    "exit_at",
    "exit_sweep",
    "in_turn",
    "relative_change",
    "simulate_early_exit",
    "threshold_sweep",
]
