"""Data sets of the published tasks, their prompts, and word problems that need no download."""

from .graph_reachability import generate_graph_problems, make_careless, split_graph_problems
from .gsm8k import GSM8K_SYSTEM_PROMPT, load_gsm8k, prepare_gsm8k
from .loading import load_split
from .math import MATH_SUBJECTS, MATH_SYSTEM_PROMPT, load_math
from .multiple_choice import MMLU_STEM_SUBJECTS, MULTIPLE_CHOICE_SYSTEM_PROMPT, load_arc_challenge, load_mmlu_stem
from .open_qa import OPEN_QA_SYSTEM_PROMPT, load_open_qa
from .prompts import build_prompt, build_system_prompt, filter_long_prompts
from .tokenizer_loading import load_tokenizer
from .word_problem_tokenizer import build_graph_tokenizer, build_word_problem_tokenizer
from .word_problems import TEMPLATES, WordProblemTemplate, generate_word_problems, make_sloppy, split_word_problems


__all__ = [
    "GSM8K_SYSTEM_PROMPT",
    "MATH_SUBJECTS",
    "MATH_SYSTEM_PROMPT",
    "MMLU_STEM_SUBJECTS",
    "MULTIPLE_CHOICE_SYSTEM_PROMPT",
    "OPEN_QA_SYSTEM_PROMPT",
    "TEMPLATES",
    "WordProblemTemplate",
    "build_graph_tokenizer",
    "build_prompt",
    "build_system_prompt",
    "build_word_problem_tokenizer",
    "filter_long_prompts",
    "generate_graph_problems",
    "generate_word_problems",
    "load_arc_challenge",
    "load_gsm8k",
    "load_math",
    "load_mmlu_stem",
    "load_open_qa",
    "load_split",
    "load_tokenizer",
    "make_careless",
    "make_sloppy",
    "prepare_gsm8k",
    "split_graph_problems",
    "split_word_problems",
]
