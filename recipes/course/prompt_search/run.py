"""
A search for a short prompt that makes a language model do a task: greedy coordinate gradient (GCG), against a prompt
written by a person, no prompt, and a random search that may spend as much.

```bash
python recipes/course/prompt_search/run.py --config recipes/configs/course/prompt_search.yaml
python recipes/course/prompt_search/run.py --task gender
python recipes/course/prompt_search/run.py --model_name_or_path openai-community/gpt2 --questions_file my.jsonl \
    --manual_prompt " The answer is"
```

The first command takes 80 seconds on one CPU core.

1. A small Llama learns the stories of the course (or `model_name_or_path` is loaded).
2. A task is a query and an answer, such as `the king went to oslo , the capital of norway .` and ` norwegian`. The
   prompt, always `prompt_length` tokens, comes between them: its loss is -log p(answer), mean over the items.
3. GCG and random replacements start from the same random prompt and spend `budget` evaluations each. Half of the
   countries (or people) are for the search; accuracy is measured on the other half: the answer has to be the most
   probable of all tokens.
4. The same for each of several seeds, which change the split, the first prompt and the draws, not the model.

Questions of your own are JSON lines of `query`, `answer` and, to split by, `group`.

Outputs, in `output_dir`: `prompt_search.md`, `prompt_search.png`, `prompts.json` (what was found), `model` (if trained
here), `metrics.json`, `run.json`.

Sources: Zou et al. 2023 (GCG, 2307.15043), Shin et al. 2020 (AutoPrompt, 2010.15980), Ebrahimi et al. 2018 (HotFlip,
1712.06751).
"""

from collections import defaultdict
from dataclasses import dataclass

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.evaluation.statistics import mean_t_interval, paired_t_difference
from hf_evidenceflow.files import read_json_lines
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.course.prompt_search.gcg import search_prompt
from hf_evidenceflow.recipes.course.prompt_search.objective import PromptObjective
from hf_evidenceflow.recipes.course.prompt_search.prompt_tokens import allowed_tokens, random_prompt, round_trip
from hf_evidenceflow.recipes.course.prompt_search.search_plots import plot_search, search_rows
from hf_evidenceflow.recipes.course.prompt_search.tasks import TASKS, Question, encode_questions, split_by_group
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.recipes.course.shared.stages import run_stage, stage_settings
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


SMALL_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}


SEARCHES = ("random replacements", "GCG")
# Held-out accuracy from which on a search has found a prompt for the task
SOLVED = 0.9


@dataclass
class PromptSearchArguments(CourseArguments):
    """
    Arguments of the recipe, beside those of every recipe of the course.

    Args:
        model_name_or_path (`str`, *optional*):
            A causal LM to search a prompt for. Without it one is trained on the text.
        task (`str`, *optional*, defaults to `"language"`):
            `language`, `capital` or `gender`, see [`~recipes.course.prompt_search.tasks`].
        questions_file (`str`, *optional*):
            Questions of your own instead, as JSON lines.
        manual_prompt (`str`, *optional*):
            What a person would write; the task's own without it.
        methods (`list[str]`, *optional*):
            Searches to run, by their names or parts of them: `GCG`, `"random replacements"`. If not given, both.
        prompt_length (`int`, *optional*, defaults to `4`):
            Tokens of the prompt.
        budget (`int`, *optional*, defaults to `500`):
            Evaluations of each search; a gradient counts as 3.
        candidates (`int`, *optional*, defaults to `64`):
            Tokens a place that the gradient proposes.
        batch (`int`, *optional*, defaults to `32`):
            Replacements a step.
        seeds (`int`, *optional*, defaults to `8`):
            Splits and searches.
        search_items, held_out_items (`int`, *optional*, default to `24` and `120`):
            Most items of a split.
        printable_ascii (`bool`, *optional*, defaults to `True`):
            Whether prompts are of printable ASCII only.
        steps (`int`, *optional*, defaults to `600`):
            Optimizer steps of the small Llama.
        learning_rate (`float`, *optional*, defaults to `5e-3`):
            Its highest learning rate.
        vocab_size (`int`, *optional*, defaults to `800`):
            Tokens of its tokenizer.
        block_size (`int`, *optional*, defaults to `64`):
            Tokens a row of its text.
    """

    output_dir: str = "outputs/prompt_search"
    model_name_or_path: str | None = None
    task: str = "language"
    questions_file: str | None = None
    manual_prompt: str | None = None
    methods: list[str] | None = None
    prompt_length: int = 4
    budget: int = 500
    candidates: int = 64
    batch: int = 32
    seeds: int = 8
    search_items: int = 24
    held_out_items: int = 120
    printable_ascii: bool = True
    steps: int = 600
    learning_rate: float = 5e-3
    vocab_size: int = 800
    block_size: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.task not in TASKS:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {self.task!r}.")
        if self.questions_file is not None and self.manual_prompt is None:
            raise ValueError("With a `questions_file`, give the `manual_prompt` that a person would write.")
        self.methods = chosen_methods(SEARCHES, self.methods)


def load_or_train(args: PromptSearchArguments, folder):
    """The model that a prompt is searched for, and its tokenizer."""
    if args.model_name_or_path is not None:
        return load_model(args.model_name_or_path, device="cpu")
    documents = course_documents(args)
    tokenizer = train_text_tokenizer(documents, args.vocab_size)
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    rows = pack_rows(np.concatenate(encoded), np.cumsum([len(ids) for ids in encoded]), args.block_size)
    settings = stage_settings(folder / "model", args.seed, args.steps, args.learning_rate)
    settings |= {"per_device_train_batch_size": 32}
    trainer = Trainer(
        model_from_scratch("llama", SMALL_LLAMA, tokenizer),
        TrainingArguments(**settings),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    run_stage(trainer)
    return trainer.model, tokenizer


def load_questions(args: PromptSearchArguments) -> tuple[list[Question], str]:
    """The questions and the prompt of a person."""
    if args.questions_file is None:
        questions, manual = TASKS[args.task]
        return questions(), args.manual_prompt or manual
    rows = read_json_lines(args.questions_file)
    for row in rows:
        if not isinstance(row.get("query"), str) or not isinstance(row.get("answer"), str):
            raise ValueError(
                f"A line of {args.questions_file} has no text `query` and `answer`: {row}. Correct or remove it."
            )
    return [Question(row["query"], row["answer"], str(row.get("group", row["query"]))) for row in rows], (
        args.manual_prompt
    )


def main(argv: list[str] | None = None) -> dict:
    parser = RecipeParser(PromptSearchArguments, __doc__)
    (args,) = parser.parse_args_and_config(argv)
    with course_run("prompt_search", args) as run:
        questions, manual_prompt = load_questions(args)
        split_by_group(
            questions, args.search_items, args.held_out_items, args.seed
        )  # refuses before anything is trained
        model, tokenizer = load_or_train(args, run.folder)
        manual = torch.tensor(tokenizer(manual_prompt, add_special_tokens=False)["input_ids"], dtype=torch.long)
        empty = manual[:0]
        allowed = allowed_tokens(tokenizer, model.get_input_embeddings().weight.shape[0], args.printable_ascii)
        print(f"{int(allowed.sum())} tokens allowed; written by a person: {manual_prompt!r}", flush=True)

        found, histories, rows = [], defaultdict(list), defaultdict(list)
        for seed in range(args.seed, args.seed + args.seeds):
            split = split_by_group(questions, args.search_items, args.held_out_items, seed)
            searched, held_out = (PromptObjective(model, encode_questions(some, tokenizer)) for some in split)
            keep = round_trip(tokenizer, searched.items[0].query, searched.items[0].answer)
            start = random_prompt(allowed, args.prompt_length, seed, keep)
            prompts = {"no prompt": empty, "a person's": manual, "random tokens": start}
            settings = {"budget": args.budget, "k": args.candidates, "batch": args.batch, "seed": seed, "keep": keep}
            for name in args.methods:
                gradient = searched.gradient if name == "GCG" else None
                result = search_prompt(start, searched.losses, gradient, allowed, **settings)
                prompts[name] = result.prompt
                histories[name].append(result.history)
                print(
                    f"seed {seed}, {name}: loss {result.loss:.3f} after {result.evaluations} evaluations", flush=True
                )
            for name, prompt in prompts.items():
                row = {
                    "prompt": tokenizer.decode(prompt),
                    "search_loss": float(searched.losses(prompt[None])[0]),
                    "loss": float(held_out.losses(prompt[None])[0]),
                    "accuracy": float(np.mean(held_out.right(prompt))),
                }
                rows[name].append(row)
                found.append({"seed": seed, "kind": name, "ids": prompt.tolist(), **row})
        atomic_write_json(run.folder / "prompts.json", found)

        def over_seeds(name, key):
            value, low, high = mean_t_interval([row[key] for row in rows[name]])
            return f"{value:.2f} [{low:.2f}, {high:.2f}]" if args.seeds > 1 else f"{value:.2f}"

        lengths = {name: len(prompt) for name, prompt in prompts.items()}
        table = markdown_table(
            ["prompt", "tokens", "loss in the search", "held-out loss", "held-out accuracy (95 %)", "solved"],
            [
                [
                    name,
                    f"{lengths[name]}",
                    *(over_seeds(name, key) for key in ("search_loss", "loss", "accuracy")),
                    f"{sum(row['accuracy'] >= SOLVED for row in rows[name])} of {args.seeds}",
                ]
                for name in rows
            ],
        )
        examples = markdown_table(
            ["seed", *histories],
            [
                [f"{args.seed + index}", *(f"`{rows[name][index]['prompt']}`" for name in histories)]
                for index in range(args.seeds)
            ],
        )
        difference = None
        if len(histories) == len(SEARCHES) and args.seeds > 1:
            difference = paired_t_difference(*([row["accuracy"] for row in rows[name]] for name in SEARCHES))
        levels = {name: float(np.mean([row["search_loss"] for row in rows[name]])) for name in list(rows)[:2]}
        accuracies = {name: [row["accuracy"] for row in some] for name, some in rows.items()}
        run.draw(plot_search, search_rows(histories, levels, accuracies))
        note = (
            f"{len(searched.items)} items in the search, {len(held_out.items)} held out, on other subjects; "
            f"{args.budget} evaluations a search, a gradient as 3; {args.seeds} seeds of split and search, one model. "
            "Intervals are t intervals over the seeds, which may leave [0, 1]; solved is a held-out accuracy of at "
            f"least {SOLVED}."
        )
        metrics = {"prompts": rows, "histories": histories}
        if difference is not None:
            metrics["difference"] = difference._asdict()
            note += (
                " GCG minus random replacements in held-out accuracy: "
                f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]."
            )
        return run.finish([table, examples], note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
