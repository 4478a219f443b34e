"""
The tasks: one file each, which loads the problems, asks them, and grades the answers. `TASKS` names those that recipes
train on; `TEST_TASKS` those that have a test set alone; `BENCHMARKS` tells where published test sets are;
`GENERATED_TASKS` names those that a tiny model learns without any download, in GSM8K's format; `THOUGHT_TASKS` those
whose rows also hold `steps` and `thought_targets`, for latent training.

All loaders take the same arguments:

- `name_or_path` (`str`): name on the Hub, also with `@` and a revision, or a local file or folder, see
  [`~hf_evidenceflow.data.load_split`].
- `split` (`str`): name of the split.
- `conversational` (`bool` or `str`): whether prompts are chat messages, see [`build_prompt`].
- `max_samples` (`int`, *optional*): number of rows to keep; `None` keeps all.
- `seed` (`int`, *optional*): shuffles the rows before the first `max_samples` are kept; `None` keeps their order.
- `system_prompt` (`str`, *optional*): instruction before the question; `None` for the question alone.

They raise what `load_split` raises, and a `ValueError` for a row without an answer to grade by.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .aime import AIME_SYSTEM_PROMPT, load_aime
from .benchmarks import BENCHMARKS, Benchmark
from .gpqa import load_gpqa
from .grading import Reward, check_golds
from .graph_reachability import build_graph_tokenizer, generate_graph_problems, make_careless, split_graph_problems
from .graph_stories import (
    build_story_tokenizer,
    generate_graph_stories,
    make_wandering,
    split_graph_stories,
    story_reward,
)
from .gsm8k import (
    GRADERS,
    GSM8K_SYSTEM_PROMPT,
    NUMBER_GRADERS,
    extract_answer,
    grade,
    gsm8k_reward,
    is_parsable,
    load_gsm8k,
    prepare_gsm8k,
)
from .math import MATH_SUBJECTS, MATH_SYSTEM_PROMPT, extract_math_answer, grade_math, load_math, math_reward
from .math_500 import load_math_500
from .multiple_choice import (
    MMLU_STEM_SUBJECTS,
    MULTIPLE_CHOICE_SYSTEM_PROMPT,
    extract_choice,
    load_arc_challenge,
    load_mmlu_stem,
    multiple_choice_reward,
)
from .numbers import last_number, parse_number
from .open_qa import OPEN_QA_SYSTEM_PROMPT, extract_open_answer, load_open_qa, normalize_answer, open_qa_reward
from .own_rows import ROWS_SYSTEM_PROMPT, extract_short_answer, load_rows, rows_reward
from .prompts import build_prompt, build_system_prompt, chat_form, filter_long_prompts
from .set_tracking import (
    build_set_tokenizer,
    generate_set_problems,
    make_hasty,
    set_runs,
    set_tracking_reward,
    split_set_problems,
)
from .text import MARKER, after_only_marker, completion_text
from .word_problems import (
    TEMPLATES,
    WordProblemTemplate,
    build_word_problem_tokenizer,
    generate_word_problems,
    make_sloppy,
    split_word_problems,
)


class Task(NamedTuple):
    """
    A task to train on: `load` gives a `datasets.Dataset` with at least the columns `prompt` and `answer`, `reward`
    grades completions by `answer`, and `dataset` is the published set on the Hub, `None` where there is none that
    everyone takes. `other_graders` are further ways to read the same answers, for evaluations.
    """

    load: Callable
    reward: Reward
    dataset: str | None
    other_graders: Mapping[str, Reward] = {}

    @property
    def graders(self) -> Mapping[str, Reward]:
        """The graders of an evaluation by name, `strict` first: that of the reward."""
        return {"strict": self.reward, **self.other_graders}


TASKS = {
    "gsm8k": Task(load_gsm8k, gsm8k_reward, "openai/gsm8k", NUMBER_GRADERS),
    "math": Task(load_math, math_reward, "EleutherAI/hendrycks_math"),
    "mmlu_stem": Task(load_mmlu_stem, multiple_choice_reward, "cais/mmlu"),
    "arc_challenge": Task(load_arc_challenge, multiple_choice_reward, "allenai/ai2_arc"),
    "open_qa": Task(load_open_qa, open_qa_reward, None),
    "rows": Task(load_rows, rows_reward, None),
}

TEST_TASKS = {
    "gsm8k_platinum": Task(load_gsm8k, gsm8k_reward, "madrylab/gsm8k-platinum", NUMBER_GRADERS),
    "math_500": Task(load_math_500, math_reward, "HuggingFaceH4/MATH-500"),
    "aime25": Task(load_aime, gsm8k_reward, "math-ai/aime25", NUMBER_GRADERS),
    "aime26": Task(load_aime, gsm8k_reward, "MathArena/aime_2026", NUMBER_GRADERS),
    "gpqa_diamond": Task(load_gpqa, multiple_choice_reward, "Idavidrein/gpqa"),
}


class GeneratedTask(NamedTuple):
    """
    A self-made task: `split` makes `{"train": rows, "test": rows}` from `train`, `test`, `seed` and its own settings;
    `spoil` takes rows, a share and a `seed`, and gives so many of them a wrong solution; `reward` grades completions.
    """

    split: Callable
    spoil: Callable
    build_tokenizer: Callable
    reward: Reward = gsm8k_reward


GENERATED_TASKS = {
    "sums": GeneratedTask(split_word_problems, make_sloppy, build_word_problem_tokenizer),
    "graph": GeneratedTask(split_graph_problems, make_careless, build_graph_tokenizer),
}

THOUGHT_TASKS = {
    "sets": GeneratedTask(split_set_problems, make_hasty, build_set_tokenizer, set_tracking_reward),
    "stories": GeneratedTask(split_graph_stories, make_wandering, build_story_tokenizer, story_reward),
}

__all__ = [
    "AIME_SYSTEM_PROMPT",
    "BENCHMARKS",
    "GENERATED_TASKS",
    "GRADERS",
    "GSM8K_SYSTEM_PROMPT",
    "MARKER",
    "MATH_SUBJECTS",
    "MATH_SYSTEM_PROMPT",
    "MMLU_STEM_SUBJECTS",
    "MULTIPLE_CHOICE_SYSTEM_PROMPT",
    "NUMBER_GRADERS",
    "OPEN_QA_SYSTEM_PROMPT",
    "ROWS_SYSTEM_PROMPT",
    "TASKS",
    "TEMPLATES",
    "TEST_TASKS",
    "THOUGHT_TASKS",
    "Benchmark",
    "GeneratedTask",
    "Reward",
    "Task",
    "WordProblemTemplate",
    "after_only_marker",
    "build_graph_tokenizer",
    "build_prompt",
    "build_set_tokenizer",
    "build_story_tokenizer",
    "build_system_prompt",
    "build_word_problem_tokenizer",
    "chat_form",
    "check_golds",
    "completion_text",
    "extract_answer",
    "extract_choice",
    "extract_math_answer",
    "extract_open_answer",
    "extract_short_answer",
    "filter_long_prompts",
    "generate_graph_problems",
    "generate_graph_stories",
    "generate_set_problems",
    "generate_word_problems",
    "grade",
    "grade_math",
    "gsm8k_reward",
    "is_parsable",
    "last_number",
    "load_aime",
    "load_arc_challenge",
    "load_gpqa",
    "load_gsm8k",
    "load_math",
    "load_math_500",
    "load_mmlu_stem",
    "load_open_qa",
    "load_rows",
    "make_careless",
    "make_hasty",
    "make_sloppy",
    "make_wandering",
    "math_reward",
    "multiple_choice_reward",
    "normalize_answer",
    "open_qa_reward",
    "parse_number",
    "prepare_gsm8k",
    "rows_reward",
    "set_runs",
    "set_tracking_reward",
    "split_graph_problems",
    "split_graph_stories",
    "split_set_problems",
    "split_word_problems",
    "story_reward",
]
