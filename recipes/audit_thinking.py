"""
Audit a thinking checkpoint: is its accuracy made by its states? With thinking as trained, off, with zero states, with
those of other problems, with their mean, and with the direction of another problem's.

```bash
python recipes/audit_thinking.py --model_name_or_path outputs/latent --output_dir outputs/audit --task sets
python recipes/audit_thinking.py --model_name_or_path outputs/hrpo-gsm8k --output_dir outputs/audit-gsm8k \
    --max_new_tokens 512 --max_samples 500
```

All completions are greedy, of the same problems and with the same budget of tokens, so that the differences are
paired. Where `swap` and `zero` cost nothing, the states carry nothing that the answer needs.

A latent model of another library needs a Python file with a function `load(model_name_or_path)` that returns
`generate(prompts, intervention)`, the texts of a batch, under a kind of intervention or `None`:

```bash
python recipes/audit_thinking.py --model_name_or_path codi-gpt2 --output_dir outputs/audit-codi --adapter codi_audit.py
```

Hardware: a GPU that holds the model, or a CPU for a small one; seven evaluations.

Outputs, in `output_dir`: `audit.html` with `audit.png` (the finding, a picture, the table, completions that changed),
`audit.md` (finding and table), `audit.json` (the same numbers), `completions.jsonl` (one row per problem, with the
completion and score under each intervention), `run.json` (the run record).
"""

import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from tqdm import tqdm
from transformers import set_seed

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.evaluation.audit_page import write_audit_page
from hf_evidenceflow.evaluation.chat_template import evaluation_chat_template_kwargs, parse_chat_template_kwargs
from hf_evidenceflow.evaluation.thinking_audit import ThinkingAudit, audit_generation, audit_thinking
from hf_evidenceflow.models.from_scratch import parse_overrides
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.models.thinking.intervention import INTERVENTIONS
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tasks import GENERATED_TASKS, TASKS, THOUGHT_TASKS, build_prompt
from hf_evidenceflow.tasks.prompts import chat_form, system_prompt_argument


GENERATED = {**GENERATED_TASKS, **THOUGHT_TASKS}


@dataclass
class AuditArguments:
    """
    Arguments of the audit.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder of a thinking checkpoint, or of an adapter.
        output_dir (`str`):
            Folder of the audit.
        task (`str`, *optional*, defaults to `"gsm8k"`):
            One of [`~hf_evidenceflow.tasks.TASKS`], whose data is read, or a generated one: `sums`, `graph`, `sets` or
            `stories`.
        task_settings (`dict`, *optional*):
            Arguments of a generated task, the same as in training; on the command line as JSON, such as `{"moves":
            6}`.
        dataset_name_or_path (`str`, *optional*):
            Hub name, jsonl or parquet file, or folder. If not given, the task's data set on the Hub.
        dataset_split (`str`, *optional*, defaults to `"test"`):
            Split of the data set.
        system_prompt (`str`, *optional*):
            Instruction before the question of a data set; `none`: the question alone. If not given, the task's own.
        conversational (`bool`, *optional*):
            Whether a question becomes a chat message. If not given, where the tokenizer has a chat template.
        max_samples (`int`, *optional*):
            Number of problems, from the first. If not given, all of a data set, and 500 generated ones.
        interventions (`list[str]`, *optional*, defaults to all):
            Kinds of [`ThinkingIntervention`].
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Longest completion, in tokens, thoughts included.
        batch_size (`int`, *optional*, defaults to `64`):
            Completions generated at once, between which states are exchanged.
        thinking_mode (`str`, *optional*):
            Mode of the model. If not given, the checkpoint's.
        adapter (`str`, *optional*):
            Python file with `load`, for a model of another library. It gets the prompts as they are in the data, sees
            to its own budget of tokens, and is run as it stands: use files that you trust.
        chat_template_kwargs (`dict`, *optional*):
            As in `recipes/evaluate_gsm8k.py`.
        dtype, device, revision, attn_implementation (`str`, *optional*), trust_remote_code (`bool`, *optional*):
            How the model is loaded, as in `recipes/evaluate_gsm8k.py`.
        seed (`int`, *optional*, defaults to `0`):
            Seed of generated problems and of the intervals.
    """

    model_name_or_path: str
    output_dir: str
    task: str = field(default="gsm8k", metadata={"choices": [*TASKS, *GENERATED]})
    task_settings: dict | str | None = None
    dataset_name_or_path: str | None = None
    dataset_split: str = "test"
    system_prompt: str | None = None
    conversational: bool | None = None
    max_samples: int | None = None
    interventions: list[str] = field(default_factory=lambda: list(INTERVENTIONS))
    max_new_tokens: int = 64
    batch_size: int = 64
    thinking_mode: str | None = None
    adapter: str | None = None
    chat_template_kwargs: dict | str | None = None
    dtype: str | None = None
    device: str | None = None
    revision: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    seed: int = 0

    def __post_init__(self):
        self.task_settings = parse_overrides(self.task_settings, "task_settings", '{"moves": 6}')
        self.chat_template_kwargs = parse_chat_template_kwargs(self.chat_template_kwargs)
        self.interventions = [self.interventions] if isinstance(self.interventions, str) else self.interventions
        if unknown := set(self.interventions) - set(INTERVENTIONS):
            raise ValueError(f"`interventions` must be of {', '.join(INTERVENTIONS)}, got {sorted(unknown)}.")
        if self.task not in GENERATED:
            if self.task_settings:
                raise ValueError(f"`task_settings` are for generated tasks ({', '.join(GENERATED)}), not {self.task}.")
            if self.dataset is None:
                raise ValueError(f"`task={self.task}` has no data set of its own. Give `dataset_name_or_path`.")
        elif self.dataset_name_or_path is not None:
            raise ValueError(
                f"`task={self.task}` is generated. Leave `dataset_name_or_path` out, or choose another task."
            )
        check_least(self, batch_size=2, max_new_tokens=1)

    @property
    def dataset(self) -> str | None:
        """The data set that was given, or else that of the task."""
        return self.dataset_name_or_path or TASKS[self.task].dataset


def main(argv: list[str] | None = None) -> ThinkingAudit:
    (args,) = RecipeParser(AuditArguments, __doc__).parse_args_and_config(argv)
    set_seed(args.seed)
    args.chat_template_kwargs = evaluation_chat_template_kwargs(args.chat_template_kwargs, args.model_name_or_path)
    with run_record(args.output_dir, audit=args) as record:
        rows, audit = audit_own(args) if args.adapter is None else audit_foreign(args)
        save(audit, rows, args)
        record.add(metrics={"problems": len(rows), **audit.summary()})
    print(audit.table(), audit.finding(), sep="\n\n")
    return audit


def audit_own(args: AuditArguments) -> tuple[list[dict], ThinkingAudit]:
    """Problems and audit of a thinking checkpoint."""
    model, tokenizer = load_model(
        args.model_name_or_path,
        device=args.device,
        thinking_mode=args.thinking_mode,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        dtype=args.dtype,
        attn_implementation=args.attn_implementation,
    )
    rows, reward = load_problems(args, conversational=chat_form(tokenizer, args.conversational))
    with progress(args, rows) as bar:
        return rows, audit_thinking(
            model,
            tokenizer,
            rows,
            reward,
            max_new_tokens=args.max_new_tokens,
            interventions=args.interventions,
            batch_size=args.batch_size,
            seed=args.seed,
            chat_template_kwargs=args.chat_template_kwargs,
            on_batch=bar.update,
        )


def audit_foreign(args: AuditArguments) -> tuple[list[dict], ThinkingAudit]:
    """Problems and audit of a model of another library."""
    adapter = runpy.run_path(args.adapter)
    if "load" not in adapter:
        raise ValueError(f"`{args.adapter}` has no function `load(model_name_or_path)`. Define it there.")
    rows, reward = load_problems(args, conversational=bool(args.conversational))
    with progress(args, rows) as bar:
        return rows, audit_generation(
            adapter["load"](args.model_name_or_path),
            rows,
            reward,
            interventions=args.interventions,
            batch_size=args.batch_size,
            seed=args.seed,
            on_batch=bar.update,
        )


def progress(args: AuditArguments, rows: list[dict]) -> tqdm:
    return tqdm(total=len(rows) * (1 + len(args.interventions)), desc="audit", unit="completion")


def load_problems(args: AuditArguments, conversational: bool | str):
    """Rows with `prompt` and `answer`, and the reward that grades them."""
    if args.task not in GENERATED:
        task = TASKS[args.task]
        rows = task.load(
            args.dataset,
            split=args.dataset_split,
            conversational=conversational,
            max_samples=args.max_samples,
            **system_prompt_argument(args.system_prompt),
        )
        return list(rows), task.reward
    task = GENERATED[args.task]
    count = 500 if args.max_samples is None else args.max_samples
    rows = task.split(train=0, test=count, seed=args.seed, **args.task_settings)["test"]
    asked = [row.get("prompt") or build_prompt(row["question"], conversational=False) for row in rows]
    return [{"prompt": prompt, "answer": row["answer"]} for prompt, row in zip(asked, rows)], task.reward


def save(audit: ThinkingAudit, rows: list[dict], args: AuditArguments) -> None:
    folder = Path(args.output_dir)
    title = f"Audit of {Path(args.model_name_or_path).name}"
    headline = f"{len(rows)} problems of `{args.task}`, greedy"
    headline += f", at most {args.max_new_tokens} tokens a completion." if args.adapter is None else "."
    atomic_write_text(folder / "audit.md", f"# {title}\n\n{headline}\n\n{audit.finding()}\n\n{audit.table()}\n")
    numbers = {"problems": len(rows), "finding": audit.finding(), "interventions": audit.summary()}
    atomic_write_json(folder / "audit.json", numbers)
    write_audit_page(audit, folder / "audit.html", title, headline.replace("`", ""), rows)
    lines = []
    for index, row in enumerate(rows):
        completions = {kind: each[index].text for kind, each in audit.completions.items()}
        scores = {kind: each[index] for kind, each in audit.scores.items()}
        gold = {"id": index, "prompt": row["prompt"], "gold": row["answer"]}
        lines.append(json.dumps({**gold, "completions": completions, "scores": scores}, ensure_ascii=False) + "\n")
    atomic_write_text(folder / "completions.jsonl", "".join(lines))


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Nothing was saved but `run.json`.")
