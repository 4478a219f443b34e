"""
GSM8K from a local folder for lighteval: `--custom-tasks hf_evidenceflow/integrations/tasks/gsm8k_lighteval.py`, task
`gsm8k_local`, with the environment variable `GSM8K_DATA`; `GSM8K_MAX_TOKENS` limits the answers (512).
"""

import os

from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetricGrouping
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from hf_evidenceflow.integrations.tasks.gsm8k_rows import GRADERS, data_folder, grades
from hf_evidenceflow.tasks.grading import gold_text
from hf_evidenceflow.tasks.gsm8k import GSM8K_SYSTEM_PROMPT
from hf_evidenceflow.tasks.prompts import build_prompt


def ask(row: dict, task_name: str) -> Doc:
    """The question as one text, with GSM8K's instruction before it."""
    text = build_prompt(row["question"], GSM8K_SYSTEM_PROMPT, conversational=False)
    return Doc(task_name=task_name, query=text, choices=[gold_text(row["answer"])], gold_index=0)


class Graders(SampleLevelComputation):
    """The graders of [`gsm8k_rows`] on the first answer."""

    def compute(self, doc, model_response, **kwargs):
        return grades(model_response.final_text[0], doc.choices[0])


def mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


TASKS_TABLE = [
    LightevalTaskConfig(
        name="gsm8k_local",
        prompt_function=ask,
        hf_repo=data_folder(),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=int(os.environ.get("GSM8K_MAX_TOKENS", 512)),
        stop_sequence=[],
        metrics=[
            SampleLevelMetricGrouping(
                metric_name=list(GRADERS),
                higher_is_better=dict.fromkeys(GRADERS, True),
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=Graders(),
                corpus_level_fn=dict.fromkeys(GRADERS, mean),
            )
        ],
    )
]
