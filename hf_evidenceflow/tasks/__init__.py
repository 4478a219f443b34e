"""The published tasks: loading, prompts, grading, rewards; and word problems that need no download."""

from .golds import check_golds
from .graph_reachability import generate_graph_problems, make_careless, split_graph_problems
from .gsm8k import GSM8K_SYSTEM_PROMPT, load_gsm8k, prepare_gsm8k
from .gsm8k_reward import GRADERS, extract_answer, grade, gsm8k_reward, is_parsable
from .math import MATH_SUBJECTS, MATH_SYSTEM_PROMPT, load_math
from .math_reward import extract_math_answer, grade_math, math_reward
from .multiple_choice import MMLU_STEM_SUBJECTS, MULTIPLE_CHOICE_SYSTEM_PROMPT, load_arc_challenge, load_mmlu_stem
from .multiple_choice_reward import extract_choice, multiple_choice_reward
from .numbers import last_number, parse_number
from .open_qa import OPEN_QA_SYSTEM_PROMPT, load_open_qa
from .open_qa_reward import extract_open_answer, normalize_answer, open_qa_reward
from .prompts import build_prompt, build_system_prompt, filter_long_prompts
from .text import MARKER, after_only_marker, completion_text
from .word_problem_tokenizer import build_graph_tokenizer, build_word_problem_tokenizer
from .word_problems import TEMPLATES, WordProblemTemplate, generate_word_problems, make_sloppy, split_word_problems


__all__ = [
    "GRADERS",
    "GSM8K_SYSTEM_PROMPT",
    "MARKER",
    "MATH_SUBJECTS",
    "MATH_SYSTEM_PROMPT",
    "MMLU_STEM_SUBJECTS",
    "MULTIPLE_CHOICE_SYSTEM_PROMPT",
    "OPEN_QA_SYSTEM_PROMPT",
    "TEMPLATES",
    "WordProblemTemplate",
    "after_only_marker",
    "build_graph_tokenizer",
    "build_prompt",
    "build_system_prompt",
    "build_word_problem_tokenizer",
    "check_golds",
    "completion_text",
    "extract_answer",
    "extract_choice",
    "extract_math_answer",
    "extract_open_answer",
    "filter_long_prompts",
    "generate_graph_problems",
    "generate_word_problems",
    "grade",
    "grade_math",
    "gsm8k_reward",
    "is_parsable",
    "last_number",
    "load_arc_challenge",
    "load_gsm8k",
    "load_math",
    "load_mmlu_stem",
    "load_open_qa",
    "make_careless",
    "make_sloppy",
    "math_reward",
    "multiple_choice_reward",
    "normalize_answer",
    "open_qa_reward",
    "parse_number",
    "prepare_gsm8k",
    "split_graph_problems",
    "split_word_problems",
]
