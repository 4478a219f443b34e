"""
Let a model write several solutions of each problem, as the `traces` that latent training makes its soft targets from.

```bash
python recipes/sample_traces.py --model_name_or_path outputs/discrete --dataset_name_or_path problems.jsonl \
    --step_split tokens --output_file outputs/traces.jsonl
python recipes/latent_sft.py --model_name_or_path outputs/discrete --dataset_name_or_path outputs/traces.jsonl \
    --thinking_mode soft --output_dir outputs/latent
```

The problems are rows with `prompt` or `question`, and `answer`, as in `recipes/hrpo_gsm8k.py --task rows`. Of the
samples those with the right answer after exactly one `####` are kept, cut into steps; a problem without any is left
out. For the objective `soft_targets` each step must be one token: `--step_split tokens`.

Output: JSON lines with `prompt`, `answer` and `traces`, a list of lists of steps. Nothing is written before the end.
"""

import json
from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from tqdm import tqdm

from hf_evidenceflow import traces_from_samples
from hf_evidenceflow.atomic_write import atomic_write_text, check_writable
from hf_evidenceflow.data.thought_rows import SPLITS, step_splitter
from hf_evidenceflow.evaluation.chat_template import evaluation_chat_template_kwargs, parse_chat_template_kwargs
from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.command_line.number_checks import check_least, check_positive, check_share
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tasks import load_rows, rows_reward
from hf_evidenceflow.tasks.prompts import chat_form, system_prompt_argument


@dataclass
class SampleArguments:
    """
    Model, problems, and how many solutions.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder: a plain or thinking checkpoint, or the folder of an adapter.
        dataset_name_or_path (`str`):
            Hub name, jsonl, json or parquet file, or folder.
        output_file (`str`):
            JSON lines to write.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of the data set.
        max_samples (`int`, *optional*):
            Number of problems, drawn with `seed`. If not given, all.
        system_prompt, conversational (*optional*):
            As in `recipes/latent_sft.py`.
        chat_template_kwargs (`dict`, *optional*):
            As in `recipes/evaluate_gsm8k.py`.
        num_samples (`int`, *optional*, defaults to `16`):
            Solutions of each problem.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits before sampling.
        top_p (`float`, *optional*, defaults to `1.0`):
            Samples from the fewest most probable tokens with at least this probability together.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Tokens of a solution at most.
        step_split (`str`, *optional*, defaults to `"lines"`):
            How a solution becomes steps: `lines`, `equations` or `tokens`, as in `recipes/latent_sft.py`.
        keep_wrong (`bool`, *optional*, defaults to `False`):
            Whether solutions with a wrong answer are kept too.
        batch_size (`int`, *optional*, defaults to `64`):
            Solutions generated at once.
        thinking_mode (`str`, *optional*):
            Mode of a thinking model. If not given, the checkpoint's.
        device, dtype (`str`, *optional*):
            Where and how the model is loaded. If not given, a GPU where there is one, and the checkpoint's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
    """

    model_name_or_path: str
    dataset_name_or_path: str
    output_file: str
    dataset_split: str = "train"
    max_samples: int | None = None
    system_prompt: str | None = None
    conversational: bool | None = None
    chat_template_kwargs: dict | str | None = None
    num_samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    step_split: str = field(default="lines", metadata={"choices": list(SPLITS)})
    keep_wrong: bool = False
    batch_size: int = 64
    thinking_mode: str | None = None
    device: str | None = None
    dtype: str | None = None
    seed: int = 0

    def __post_init__(self):
        self.chat_template_kwargs = parse_chat_template_kwargs(self.chat_template_kwargs)
        if self.num_samples < 2:
            raise ValueError(f"`num_samples` must be at least 2, got {self.num_samples}: one makes no distribution.")
        check_least(self, max_new_tokens=1, batch_size=1)
        check_positive(self, "temperature")
        check_share(self, "top_p")


def main(argv: list[str] | None = None) -> list[dict]:
    (args,) = RecipeParser(SampleArguments, __doc__).parse_args_and_config(argv)
    check_writable(args.output_file)
    model, tokenizer = load_model(
        args.model_name_or_path, device=args.device, thinking_mode=args.thinking_mode, dtype=args.dtype
    )
    problems = load_rows(
        args.dataset_name_or_path,
        split=args.dataset_split,
        conversational=chat_form(tokenizer, args.conversational),
        max_samples=args.max_samples,
        seed=args.seed,
        **system_prompt_argument(args.system_prompt),
    )
    samples = sample(args, model, tokenizer, problems["prompt"])
    split = step_splitter(args.step_split, tokenizer)
    rows = []
    for problem, texts in zip(problems, samples):
        grading = {} if args.keep_wrong else {"reward": rows_reward, "answer": problem["answer"]}
        if traces := traces_from_samples(texts, split, **grading):
            rows.append({"prompt": problem["prompt"], "answer": problem["answer"], "traces": traces})
    if not rows:
        raise ValueError(
            f"None of the {len(samples) * args.num_samples} solutions can be used: they need exactly one `####`, the "
            f"right answer after it, and a step before it. The first one: {samples[0][0]!r}. Train the model to write "
            "such solutions, raise `max_new_tokens`, or pass `keep_wrong`."
        )
    path = atomic_write_text(args.output_file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    kept = sum(len(row["traces"]) for row in rows)
    print(f"{kept} of {len(samples) * args.num_samples} solutions, of {len(rows)} of {len(samples)} problems: {path}")
    return rows


def sample(args: SampleArguments, model, tokenizer, prompts) -> list[list[str]]:
    """The solutions of each problem, in the order in which they were drawn."""
    texts: list[list[str]] = [[] for _ in prompts]
    batches = generate_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        num_samples=args.num_samples,
        do_sample=True,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        chat_template_kwargs=evaluation_chat_template_kwargs(args.chat_template_kwargs, args.model_name_or_path),
    )
    with tqdm(total=len(prompts) * args.num_samples, desc="sampling", unit="solution") as bar:
        for batch in batches:
            for item in batch:
                texts[item.index].append(item.text)
            bar.update(len(batch))
    return texts


if __name__ == "__main__":
    run_recipe(main)
