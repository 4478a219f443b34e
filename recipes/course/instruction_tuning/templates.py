"""FLAN-style instructions: word problems as several tasks, each worded in several ways.

A task says what is asked for and in which order the parts come: the instruction before or behind the question, the
steps before or behind the answer, and turned around, the steps given and the question asked for. A mixture draws from
the tasks in equal shares, and from the wordings of a task evenly.

Source: Wei et al. 2022 (FLAN, arXiv 2109.01652), section 2.1: about ten wordings a task, up to three of which turn the
task around.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hf_evidenceflow.tasks.text import MARKER
from hf_evidenceflow.tasks.word_problems import TEMPLATES, WordProblemTemplate, build_word_problem_tokenizer


@dataclass(frozen=True)
class InstructionTemplate:
    """
    One wording of a task. `{question}`, `{steps}` and `{answer}` stand for the parts of a problem.

    Args:
        prompt (`str`):
            What the model is given; it ends in a line break.
        completion (`str`):
            What it is to write.
    """

    prompt: str
    completion: str


_STEPS_FIRST = "{steps}\n" + MARKER + " {answer}"
_ANSWER_FIRST = MARKER + " {answer}\n{steps}"
INSTRUCTIONS = {
    "explain": (
        InstructionTemplate("{question}\n", _STEPS_FIRST),
        InstructionTemplate("Solve step by step.\n{question}\n", _STEPS_FIRST),
        InstructionTemplate("{question}\nThink before you answer.\n", _STEPS_FIRST),
        InstructionTemplate("Question: {question}\nSteps and answer:\n", _STEPS_FIRST),
    ),
    "justify": (
        InstructionTemplate("{question}\nGive the answer, then the steps.\n", _ANSWER_FIRST),
        InstructionTemplate("Answer first, then say why.\n{question}\n", _ANSWER_FIRST),
        InstructionTemplate("Question: {question}\nAnswer and steps:\n", _ANSWER_FIRST),
    ),
    "answer": (
        InstructionTemplate("{question}\nGive the answer alone.\n", MARKER + " {answer}"),
        InstructionTemplate("Answer with a number.\n{question}\n", MARKER + " {answer}"),
        InstructionTemplate("Question: {question}\nAnswer:\n", MARKER + " {answer}"),
    ),
    "invert": (
        InstructionTemplate("{steps}\nWrite a question for these steps.\n", "{question}"),
        InstructionTemplate("What was the question?\n{steps}\n", "{question}"),
        InstructionTemplate("Steps:\n{steps}\nQuestion:\n", "{question}"),
    ),
}


def render_instruction(problem: dict, template: InstructionTemplate) -> dict:
    """
    A problem as an instruction and the text to learn.

    Args:
        problem (`dict`):
            Row with `question`, and with `answer` in GSM8K's format: lines of steps, then the marker and the result.
        template ([`InstructionTemplate`]):
            Wording.

    Returns:
        `dict`: `prompt` and `completion`.

    Raises:
        `ValueError`: if the answer has no marker.

    Example:

    ```python
    >>> render_instruction({"question": "2 and 3?", "answer": "2+3=5\\n#### 5"}, INSTRUCTIONS["answer"][0])
    {'prompt': '2 and 3?\\nGive the answer alone.\\n', 'completion': '#### 5'}
    ```
    """
    steps, marker, answer = problem["answer"].rpartition(MARKER)
    if not marker:
        raise ValueError(f"The answer must end in `{MARKER} <number>`, got {problem['answer']!r}.")
    parts = {"question": problem["question"], "steps": steps.strip(), "answer": answer.strip()}
    return {"prompt": template.prompt.format(**parts), "completion": template.completion.format(**parts)}


def instruction_mixture(problems: Sequence[dict], tasks: Sequence[str] = tuple(INSTRUCTIONS), seed: int = 0) -> list:
    """
    One instruction for each problem, the tasks in equal shares, their wordings drawn evenly.

    Args:
        problems (`Sequence[dict]`):
            Rows with `question` and `answer`; they need steps for the tasks that use them.
        tasks (`Sequence[str]`, *optional*, defaults to all of `INSTRUCTIONS`):
            Tasks to mix.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `list[dict]`: rows with `prompt`, `completion` and `task`, in the order of the problems.

    Raises:
        `ValueError`: if a task is not known.
    """
    if unknown := set(tasks) - set(INSTRUCTIONS):
        raise ValueError(f"`tasks` must be some of {', '.join(INSTRUCTIONS)}, got {', '.join(sorted(unknown))}.")
    rng = random.Random(seed)
    drawn = [tasks[index % len(tasks)] for index in range(len(problems))]
    rng.shuffle(drawn)
    return [
        {**render_instruction(problem, rng.choice(INSTRUCTIONS[task])), "task": task}
        for problem, task in zip(problems, drawn)
    ]


def build_instruction_tokenizer():
    """
    The tokenizer of the word problems with the words of all instructions.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: as [`build_word_problem_tokenizer`].
    """
    words = " ".join(template.prompt for templates in INSTRUCTIONS.values() for template in templates)
    for part in ("{question}", "{steps}", "{answer}"):
        words = words.replace(part, "")
    return build_word_problem_tokenizer([*TEMPLATES, WordProblemTemplate(words, "", "", "", "")])
