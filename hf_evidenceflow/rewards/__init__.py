"""Reward functions for TRL's trainers, and the graders of the published tasks."""

from .golds import check_golds
from .gsm8k import GRADERS, extract_answer, grade, gsm8k_reward, is_parsable
from .math import extract_math_answer, grade_math, math_reward
from .multiple_choice import extract_choice, multiple_choice_reward
from .numbers import last_number, parse_number
from .open_qa import extract_open_answer, normalize_answer, open_qa_reward
from .text import MARKER, after_only_marker, completion_text


__all__ = [
    "GRADERS",
    "MARKER",
    "after_only_marker",
    "check_golds",
    "completion_text",
    "extract_answer",
    "extract_choice",
    "extract_math_answer",
    "extract_open_answer",
    "grade",
    "grade_math",
    "gsm8k_reward",
    "is_parsable",
    "last_number",
    "math_reward",
    "multiple_choice_reward",
    "normalize_answer",
    "open_qa_reward",
    "parse_number",
]
