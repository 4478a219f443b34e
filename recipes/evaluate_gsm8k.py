"""
Evaluate a causal language model on GSM8K or another task: a plain checkpoint, a thinking model or an adapter folder.

```bash
python recipes/evaluate_gsm8k.py \
    --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \
    --output_dir outputs/evaluate/qwen2.5-1.5b \
    --batch_size 64 --num_samples 8 --temperature 0.5
```

`--task aime26 --num_samples 32 --pass_at 1 8` takes another task, here with avg@32, pass@1 and pass@8;
`--dataset_name_or_path path/to/gsm8k/test.jsonl` reads a local file, `--config settings.yaml` takes the arguments from
a file. The same command run again goes on after the last whole batch; when all is done it prints the report anew.

Hardware: a GPU that holds the model, or a CPU for a small one. Time: 9 minutes for the greedy completions of all 1,319
test problems with a model of 0.1M parameters, 64 new tokens, prompts of 900 byte-level tokens, on 2 busy CPU cores.

Outputs, in `output_dir`:
- `greedy.jsonl`, `sampled.jsonl`: one row per completion, with its prompt, text, token counts and scores;
- `metrics.json`: accuracy per grader with its 95 % interval over the problems, avg@n and pass@k of n samples,
  unparsable share, lengths, tokens/s;
- `.eval_results/<task>.yaml`: the result as the Hub shows it on a model's page and the data set's leaderboard;
- `settings.json`: what the completions depend on; `run.json`: the run record.

The model card of a folder that was trained here gets the result too.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from datasets import Dataset
from rich.console import Console
from tqdm import tqdm
from transformers import set_seed

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.evaluation.accuracy import accuracy_table, summarize_completions
from hf_evidenceflow.evaluation.chat_template import evaluation_chat_template_kwargs, parse_chat_template_kwargs
from hf_evidenceflow.evaluation.completion_log import CompletionLog, claim_folder
from hf_evidenceflow.evaluation.completions import (
    generate_completions,
    plan_batches,
    render_prompts,
    weights_fingerprint,
)
from hf_evidenceflow.evaluation.evaluation_card import Evaluation, add_evaluation, why_no_card
from hf_evidenceflow.evaluation.hub_results import hub_result, why_no_hub_result, write_hub_result
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.command_line.number_checks import check_least, check_positive, check_share
from hf_evidenceflow.report.memory import peak_memory
from hf_evidenceflow.report.model_card import Sample
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.report.samples import print_samples
from hf_evidenceflow.report.say import say
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tasks import BENCHMARKS, TASKS, TEST_TASKS, Reward, Task
from hf_evidenceflow.tasks.prompts import chat_form, check_chat_template_kwargs, system_prompt_argument


EVALUATED = {**TASKS, **TEST_TASKS}
# These change what is reported, not what is generated.
REPORT_SETTINGS = (
    "output_dir",
    "graders",
    "pass_at",
    "shown_samples",
    "update_model_card",
    "update_eval_results",
    "source_url",
)
# What the card says of the completions; `SAMPLING` only if there are sampled ones
CARD_SETTINGS = (
    "max_new_tokens",
    "repetition_penalty",
    "thinking_mode",
    "system_prompt",
    "order",
    "chat_template_kwargs",
    "dtype",
)
SAMPLING = ("num_samples", "temperature", "top_p", "top_k", "seed")
CARD_SAMPLES = 3


@dataclass
class EvaluateArguments:
    """
    Arguments of the evaluation.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder: a plain or thinking checkpoint, or the folder of an adapter.
        output_dir (`str`):
            Folder of this evaluation.
        revision (`str`, *optional*):
            Revision of the model on the Hub.
        dtype (`str`, *optional*):
            Dtype of the weights, such as `"bfloat16"`. If not given, the checkpoint's.
        device (`str`, *optional*):
            Device, such as `"cuda:0"`. If not given, the GPU where there is one.
        attn_implementation (`str`, *optional*):
            Attention implementation, such as `"sdpa"`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code that the model's repository brings.
        thinking_mode (`str`, *optional*):
            Mode of a thinking model (`"projection"`, `"embedding"`, `"none"`). If not given, the checkpoint's.
        chat_template_kwargs (`dict`, *optional*):
            Further arguments of the chat template as JSON, such as `'{"enable_thinking": false}'`; `'{}'` for none. If
            not given, those that the folder's `run.json` says the model was trained with.
        task (`str`, *optional*, defaults to `"gsm8k"`):
            One of [`~hf_evidenceflow.tasks.TASKS`] or [`~hf_evidenceflow.tasks.TEST_TASKS`]: `gsm8k`,
            `gsm8k_platinum`, `math`, `math_500`, `aime25`, `aime26`, `gpqa_diamond`, `mmlu_stem`, `arc_challenge`,
            `open_qa`, `rows`.
        dataset_name_or_path (`str`, *optional*):
            Hub name, also with `@` and a revision, jsonl or parquet file, or folder. If not given, the task's
            published test set.
        split (`str`, *optional*):
            Split of the data set. If not given, that of the published test set, else `test`.
        system_prompt (`str`, *optional*):
            Instruction before a question, the same as in the training; `none`: the question alone. If not given, the
            task's own.
        max_samples (`int`, *optional*):
            Number of problems, from the first. If not given, all.
        order (`str`, *optional*, defaults to `"file"`):
            `hash`: the problems are taken in the order of their questions' hashes, so that `max_samples` gives the
            same ones whatever the order of the file, and those of a smaller number are among them.
        conversational (`bool`, *optional*):
            Whether a question becomes a chat message. If not given, where the tokenizer has a chat template.
        batch_size (`int`, *optional*, defaults to `32`):
            Completions generated at once.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Longest completion, in tokens.
        num_samples (`int`, *optional*, defaults to `0`):
            Sampled completions per problem, next to the greedy one.
        temperature (`float`, *optional*, defaults to `0.5`):
            Temperature of the sampled completions.
        top_p (`float`, *optional*, defaults to `1.0`):
            Probability mass sampled from.
        top_k (`int`, *optional*, defaults to `0`):
            Number of tokens sampled from; `0` for all.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Penalty of repeated tokens; `1.0` is none, whatever the checkpoint's generation config says.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling and of the intervals.
        graders (`list[str]`, *optional*, defaults to all of the task):
            Graders to report side by side, `strict` and for numbers also `flexible`, `hrpo_legacy` and `math_verify`.
            Others in a rerun grade the saved completions again.
        pass_at (`list[int]`, *optional*, defaults to 1 and `num_samples`):
            The k of pass@k, estimated without bias from the `num_samples` completions.
        shown_samples (`int`, *optional*, defaults to `3`):
            Completions shown at the end.
        update_model_card (`bool`, *optional*, defaults to `True`):
            Whether the result is written into the model card of `model_name_or_path`, if that is a folder with a card
            of the trainers here. The same evaluation later on replaces it.
        update_eval_results (`bool`, *optional*, defaults to `False`):
            Whether `.eval_results/<task>.yaml` is also written into the folder `model_name_or_path`, to be uploaded
            with the model.
        source_url (`str`, *optional*):
            Page with details of this evaluation, for `.eval_results`.
    """

    model_name_or_path: str
    output_dir: str
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    thinking_mode: str | None = None
    chat_template_kwargs: dict | str | None = None
    task: str = field(default="gsm8k", metadata={"choices": list(EVALUATED)})
    dataset_name_or_path: str | None = None
    split: str | None = None
    system_prompt: str | None = None
    max_samples: int | None = None
    order: str = field(default="file", metadata={"choices": ["file", "hash"]})
    conversational: bool | None = None
    batch_size: int = 32
    max_new_tokens: int = 1024
    num_samples: int = 0
    temperature: float = 0.5
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    graders: list[str] | None = None
    pass_at: list[int] | None = None
    shown_samples: int = 3
    update_model_card: bool = True
    update_eval_results: bool = False
    source_url: str | None = None

    def __post_init__(self):
        self.chat_template_kwargs = parse_chat_template_kwargs(self.chat_template_kwargs)
        if self.task not in EVALUATED:
            raise ValueError(f"`task` must be one of {', '.join(EVALUATED)}, got {self.task!r}.")
        published = BENCHMARKS.get(self.task)
        self.dataset_name_or_path = self.dataset_name_or_path or (published.name if published else self._task.dataset)
        self.split = self.split or (published.split if published else "test")
        if self.dataset_name_or_path is None:
            raise ValueError(f"`task={self.task}` has no data set of its own. Give `dataset_name_or_path`.")
        known = list(self._task.graders)
        graders = known if self.graders is None else self.graders
        self.graders = [graders] if isinstance(graders, str) else list(graders)
        if not self.graders or not set(self.graders) <= set(known):
            raise ValueError(f"`graders` must be one or several of {', '.join(known)}, got {self.graders}.")
        if self.update_eval_results and not Path(self.model_name_or_path).is_dir():
            raise ValueError(f"`update_eval_results` needs a local folder, got {self.model_name_or_path!r}.")
        if self.pass_at is not None and not all(1 <= k <= self.num_samples for k in self.pass_at):
            raise ValueError(
                f"`pass_at` must be from 1 to `num_samples`, got {self.pass_at} and {self.num_samples} samples."
            )
        check_least(self, batch_size=1, max_new_tokens=1, num_samples=0, top_k=0, seed=0, shown_samples=0)
        check_positive(self, "repetition_penalty")
        check_share(self, "top_p")
        if self.order not in ("file", "hash"):
            raise ValueError(f"`order` must be 'file' or 'hash', got {self.order!r}.")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(
                f"`max_samples` must be at least 1, got {self.max_samples}; leave it out for all problems."
            )
        if self.num_samples and not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0 to sample, got {self.temperature}.")

    @property
    def _task(self) -> Task:
        return EVALUATED[self.task]

    @property
    def rewards(self) -> dict[str, Reward]:
        """The graders by name."""
        return {name: self._task.graders[name] for name in self.graders}


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(EvaluateArguments, __doc__).parse_args_and_config(argv)
    set_seed(args.seed)
    args.chat_template_kwargs = evaluation_chat_template_kwargs(args.chat_template_kwargs, args.model_name_or_path)
    settings = {name: value for name, value in asdict(args).items() if name not in REPORT_SETTINGS}
    claim_folder(args.output_dir, settings)
    with run_record(args.output_dir, evaluate=args) as record:
        for reward in args.rewards.values():
            if reward.check is not None:
                reward.check()  # a missing extra shows now rather than after the last batch
        say(f"Loading {args.model_name_or_path} ...")
        start = time.perf_counter()
        model, tokenizer = load_model(
            args.model_name_or_path,
            device=args.device,
            thinking_mode=args.thinking_mode,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
        )
        check_chat_template_kwargs(args.chat_template_kwargs, tokenizer)
        problems = load_problems(args, tokenizer)
        for reward in args.rewards.values():
            reward.golds.check(problems["answer"])
        claim_folder(
            args.output_dir, settings | {"weights": weights_fingerprint(model), "data": fingerprint(problems)}
        )

        say(f"Loaded in {time.perf_counter() - start:.0f} s. Completing {len(problems)} problems ...")
        rows = {"greedy": evaluate(model, tokenizer, problems, args, "greedy")}
        if args.num_samples:
            rows["sampled"] = evaluate(model, tokenizer, problems, args, "sampled")

        metrics = {"problems": len(problems)}
        for decoding in rows:
            greedy = decoding == "greedy"
            metrics[decoding] = summarize_completions(
                rows[decoding], args.graders, greedy=greedy, seed=args.seed, pass_at=args.pass_at
            )
        atomic_write_json(Path(args.output_dir) / "metrics.json", metrics)
        memory = peak_memory()
        costs = {
            "seconds": time.perf_counter() - start,
            "peak_memory_gb": None if memory is None else memory / 1e9,
        }
        record.add(metrics=metrics, costs=costs)
    print_costs(costs)
    print_report(metrics, rows["greedy"], args)
    if args.update_model_card:
        update_card(metrics, rows["greedy"], problems, args)
    save_hub_result(metrics, args)
    return metrics


def load_problems(args: EvaluateArguments, tokenizer) -> Dataset:
    problems = EVALUATED[args.task].load(
        args.dataset_name_or_path,
        split=args.split,
        conversational=chat_form(tokenizer, args.conversational),
        max_samples=args.max_samples if args.order == "file" else None,
        **system_prompt_argument(args.system_prompt),
    )
    if args.order == "file":
        return problems
    asked = problems["question" if "question" in problems.column_names else "prompt"][:]
    texts = [text if isinstance(text, str) else json.dumps(text) for text in asked]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return problems.select(sorted(range(len(hashes)), key=hashes.__getitem__)[: args.max_samples])


def fingerprint(problems: Dataset) -> str:
    text = json.dumps([problems["prompt"][:], problems["answer"][:]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def evaluate(model, tokenizer, problems: Dataset, args: EvaluateArguments, decoding: str) -> list[dict]:
    """Generate and grade what is not yet in `<decoding>.jsonl`; return all of its rows."""
    num_samples = args.num_samples if decoding == "sampled" else 1
    prompts, golds = problems["prompt"][:], problems["answer"][:]
    lengths = [len(ids) for ids in render_prompts(tokenizer, prompts, args.chat_template_kwargs)[1]]
    plan = plan_batches(lengths, args.batch_size, num_samples)
    log = CompletionLog(Path(args.output_dir) / f"{decoding}.jsonl", plan)
    if any(set(row["scores"]) != set(args.graders) for row in log.rows):
        log.rewrite(row | grades(row["completion"], row["gold"], args.rewards) for row in log.rows)

    sampling = {}
    if decoding == "sampled":
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    batches = generate_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        num_samples=num_samples,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        start_batch=log.batches_done,
        chat_template_kwargs=args.chat_template_kwargs,
        progress=True,
        **sampling,
    )
    with tqdm(total=sum(map(len, plan)), initial=len(log.rows), desc=decoding, unit="completion") as bar:
        for batch in batches:
            log.append(to_row(completion, golds[completion.index], args.rewards) for completion in batch)
            bar.update(len(batch))
    return log.rows


def to_row(completion, gold: str, rewards: dict[str, Reward]) -> dict:
    row = asdict(completion)
    return {"id": row.pop("index"), "completion": row.pop("text"), "gold": gold, **row} | grades(
        completion.text, gold, rewards
    )


def grades(text: str, gold: str, rewards: dict[str, Reward]) -> dict:
    return {
        "extracted": {grader: reward.extract(text) for grader, reward in rewards.items()},
        "scores": {grader: reward.grade(text, gold) for grader, reward in rewards.items()},
    }


def save_hub_result(metrics: dict, args: EvaluateArguments) -> None:
    """Write the result in the Hub's form, or say in a line why not."""
    reason = why_no_hub_result(args.task, metrics["problems"])
    if reason is not None:
        print(f"No `.eval_results` are written: {reason}.")
        return
    names = [*CARD_SETTINGS, *(SAMPLING if args.num_samples else ())]
    settings = {name: getattr(args, name) for name in names}
    published = BENCHMARKS[args.task]
    if args.dataset_name_or_path != published.name:  # whether these are the published ones is not known here
        local = Path(args.dataset_name_or_path).expanduser()
        settings["problems from"] = f"a local {local.name}" if local.exists() else args.dataset_name_or_path
    entry = hub_result(published, metrics, args.graders[0], settings, args.source_url)
    folders = [args.output_dir]
    if args.update_eval_results:
        folders.append(args.model_name_or_path)
    for folder in folders:
        print(f"Result for the Hub: {write_hub_result(folder, args.task, entry)}")


def update_card(metrics: dict, greedy_rows: list[dict], problems: Dataset, args: EvaluateArguments) -> None:
    """Add the result to the model's card, or say in a line why not."""
    model, grader = args.model_name_or_path, args.graders[0]
    reason = why_no_card(model)
    if reason is None:
        names = [*CARD_SETTINGS, *(SAMPLING if args.num_samples else ())]
        evaluation = Evaluation(
            task=args.task.upper().replace("_", "-"),
            dataset=args.dataset_name_or_path,
            split=args.split,
            problems=len(problems),
            settings={name: getattr(args, name) for name in names},
            metrics={name: metrics[name] for name in ("greedy", "sampled") if name in metrics},
            samples=[
                Sample(
                    problems[row["id"]]["prompt"], row["completion"], row["scores"][grader], row.get("latent_weight")
                )
                for row in sorted(greedy_rows, key=lambda row: row["id"])[:CARD_SAMPLES]
            ],
        )
        try:
            print(f"Model card: {add_evaluation(model, evaluation)}")
        except OSError as error:
            reason = str(error)
    if reason is not None:
        print(f"The result is in no model card: {reason}.")


def print_costs(costs: dict) -> None:
    """Time of this call, of which a rerun that goes on sees its own part, and memory."""
    memory = costs["peak_memory_gb"]
    print(
        f"{costs['seconds']:.0f} s in this call" + ("" if memory is None else f", peak memory {memory:.1f} GB") + "."
    )


def print_report(metrics: dict, greedy_rows: list[dict], args: EvaluateArguments) -> None:
    console, shown, grader = Console(), greedy_rows[: args.shown_samples], args.graders[0]
    decodings = {name: metrics[name] for name in ("greedy", "sampled") if name in metrics}
    console.print(accuracy_table(decodings, f"{args.model_name_or_path}, {metrics['problems']} problems"))
    if shown:
        print_samples(
            [row["prompt"] for row in shown],
            [row["completion"] for row in shown],
            golds=[row["gold"] for row in shown],
            extracted=[row["extracted"][grader] for row in shown],
            rewards=[row["scores"][grader] for row in shown],
            title=f"Greedy completions, grader {grader}",
            console=console,
        )


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Finished batches are saved: run the same command again to go on.")
