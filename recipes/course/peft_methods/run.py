"""
Parameter-efficient tuning in one table: LoRA, bottleneck adapters, prefix tuning, soft prompts with three starts,
P-tuning with an MLP and an LSTM, P-tuning v2, and a prompt of real tokens, against full tuning, the head alone, and no
tuning.

```bash
python recipes/course/peft_methods/run.py --config recipes/configs/course/peft_methods.yaml
```

Offline, two minutes on one CPU core: a tiny Llama reads the stories of a small world. Then all
methods tune copies of it, for as many steps on the same batches, to say of a story's first sentence whether it is of a
man or a woman. One test has new sentences on the same people, the other people that no method was tuned on: of them
the model can know from the stories only. The bottleneck adapter is written in
`hf_evidenceflow/peft/houlsby.py` and registered with peft, so that it is saved and loaded like LoRA. A
second table has LoRA's rank and alpha, and what merging it costs.

With any text (`--text_file`) the task is which of its frequent words is missing in a gap. With a model and rows of
your own, one text and one label each:

```bash
python recipes/course/peft_methods/run.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name stanfordnlp/imdb \
    --label_column label --template "{text} Is it good? 0 for no, 1 for yes:" --max_documents 4000 \
    --learning_rate_scale 0.05 --output_dir outputs/imdb-peft
```

Outputs, in `output_dir`: `peft_methods.md` (the tables), `peft_methods.png`, `metrics.json`, `run.json`, `base` (the
model) and, of the first seed, a folder for each method, written by `save_pretrained`; an adapter's is loaded by
`peft.AutoPeftModelForCausalLM.from_pretrained`.

Sources: Hu et al. 2021 (LoRA, 2106.09685), Houlsby et al. 2019 (adapters, 1902.00751), Li and Liang 2021 (prefix
tuning, 2101.00190), Lester et al. 2021 (soft prompts, 2104.08691), Liu et al. 2021 (P-tuning, 2103.10385) and 2021
(P-tuning v2, 2110.07602), Zou et al. 2023 (the search for a prompt of real tokens, 2307.15043).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, set_seed

from hf_evidenceflow.data import load_tokenizer
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.recipes.course.peft_methods.adapter_plots import (
    SoftPrompt,
    adapter_rows,
    lora_weights,
    plot_adapters,
    soft_prompt,
)
from hf_evidenceflow.recipes.course.peft_methods.discrete_prompt import search_discrete_prompt
from hf_evidenceflow.recipes.course.peft_methods.lora_merge import merge_errors
from hf_evidenceflow.recipes.course.peft_methods.methods import (
    Method,
    lora_method,
    parameter_counts,
    tuning_methods,
)
from hf_evidenceflow.recipes.course.peft_methods.peft_report import (
    lora_table,
    method_rows,
    method_table,
    plot_methods,
    summarise,
)
from hf_evidenceflow.recipes.course.peft_methods.pretraining import pretrain_tiny_llama
from hf_evidenceflow.recipes.course.peft_methods.task import LabelledTask, cloze_task, gender_task, labelled_task
from hf_evidenceflow.recipes.course.peft_methods.tuning import accuracy, check_labels, encode_rows, tune
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.run_folder.exit_codes import run_recipe


DISCRETE = "discrete prompt"


@dataclass
class PeftMethodsArguments(CourseArguments):
    """
    Base model, task and sizes.

    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/peft_methods"`):
            Folder of the results.
        model_name_or_path (`str`, *optional*):
            Base model; `None`: a tiny Llama, trained here on the text.
        label_column (`str`, *optional*):
            Column with the labels, words or numbers, of the rows in `dataset_name`, which is then the task; needs
            `model_name_or_path`. A fifth of them is the test.
        template (`str`, *optional*):
            Prompt, with `{text}` in it; `None`: the task's own. The label follows it after a space.
        train_rows, test_rows (`int`, *optional*, default to `300` and `200`):
            Rows for tuning and of each test, at most.
        pretraining_steps, steps (`int`, *optional*, default to `600` and `300`):
            Steps of the base model, of 16 blocks of 64 tokens, and of each method.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows of a step.
        methods (`list[str]`, *optional*):
            Methods to run, by their names in the table or parts of them, such as `LoRA "soft prompt"`. If not given,
            all.
        seeds (`int`, *optional*, defaults to `3`):
            Seeds of each method: what it starts from, and its batches. The base model and the task are of `seed`.
        vocab_size (`int`, *optional*, defaults to `1200`):
            Tokens of the tiny Llama's vocabulary, at most.
        virtual_tokens (`int`, *optional*, defaults to `8`):
            Length of the prompts and prefixes.
        search_budget (`int`, *optional*, defaults to `300`):
            Prompts of real tokens that are evaluated, each on 32 rows; 0 leaves this method out.
        prompt_text (`str`, *optional*, defaults to `"the man and the woman"`):
            Text that a soft prompt starts from.
        lora_ranks (`list[int]`, *optional*, defaults to `[1, 8]`):
            Ranks of LoRA.
        bottleneck (`int`, *optional*, defaults to `8`):
            Width of the bottleneck adapters.
        learning_rate_scale (`float`, *optional*, defaults to `1.0`):
            Factor of all learning rates, which are those of a tiny model.
    """

    may_be_zero: ClassVar[frozenset[str]] = CourseArguments.may_be_zero | {"search_budget"}

    output_dir: str = "outputs/peft_methods"
    model_name_or_path: str | None = None
    label_column: str | None = None
    template: str | None = None
    train_rows: int = 300
    test_rows: int = 200
    pretraining_steps: int = 600
    steps: int = 300
    batch_size: int = 16
    methods: list[str] | None = None
    seeds: int = 3
    vocab_size: int = 1200
    virtual_tokens: int = 8
    search_budget: int = 300
    prompt_text: str = "the man and the woman"
    lora_ranks: list[int] | None = None
    bottleneck: int = 8
    learning_rate_scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.lora_ranks = [1, 8] if self.lora_ranks is None else self.lora_ranks
        if self.label_column is not None and None in (self.dataset_name, self.model_name_or_path):
            raise ValueError(
                f"`label_column` ({self.label_column!r}) needs a `dataset_name` with that column and a "
                f"`model_name_or_path`, got {self.dataset_name!r} and {self.model_name_or_path!r}."
            )


def choose_methods(args: PeftMethodsArguments, base: str) -> dict[str, Method | None]:
    """The methods asked for; the search for a prompt of real tokens, which trains nothing, has None."""
    methods: dict[str, Method | None] = tuning_methods(
        args.prompt_text,
        base,
        args.virtual_tokens,
        tuple(args.lora_ranks),
        args.bottleneck,
        args.learning_rate_scale,
    )
    if args.search_budget:
        methods[DISCRETE] = None
    return {name: methods[name] for name in chosen_methods(methods, args.methods)}


def load_task(args: PeftMethodsArguments, documents: list[str]) -> LabelledTask:
    if args.label_column is not None:
        data = load_dataset(args.dataset_name, args.dataset_config, split="train").shuffle(seed=args.seed)
        rows = data.select(range(min(args.max_documents, len(data)))).to_list()
        template = args.template or "{text}\n"
        return labelled_task(rows, args.text_column, args.label_column, template, seed=args.seed)
    real_text = args.text_file or args.dataset_name
    make = (lambda *sizes: cloze_task(documents, *sizes)) if real_text else gender_task
    task = make(args.train_rows, args.test_rows, args.seed)
    return LabelledTask(task.name, task.train, task.tests, args.template or task.template)


def load_base(args: PeftMethodsArguments, documents: list[str]) -> tuple[str, object, str]:
    """The folder or name of the base model, its tokenizer, and what is to be said of it."""
    if args.model_name_or_path is not None:
        return args.model_name_or_path, load_tokenizer(args.model_name_or_path), args.model_name_or_path
    tokenizer = train_text_tokenizer(documents, args.vocab_size)
    model, result = pretrain_tiny_llama(documents, tokenizer, args.pretraining_steps, seed=args.seed)
    folder = Path(args.output_dir) / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    says = f"tiny Llama of {model.num_parameters():,} parameters, {result['loss']:.2f} nats a token after pretraining"
    print(f"Base: {says}, {result['seconds']:.0f} s", flush=True)
    return str(folder), tokenizer, says


def run_method(args, method: Method, base: str, task: LabelledTask, tokenizer, seed: int, random_weights=False):
    """Tunes a copy of the base model; returns it, what was measured, and its soft prompt before and after."""
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if random_weights:
        model = AutoModelForCausalLM.from_config(model.config)
    model = method.prepare(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    start = soft_prompt(model)
    trained, total = parameter_counts(model)
    result = tune(model, task, tokenizer, method.learning_rate, args.steps, args.batch_size, seed)
    accuracies = {name: accuracy(model, rows, task.template, tokenizer) for name, rows in task.tests.items()}
    last = result["losses"][-10:]
    measured = {"trained": trained, "share": trained / total, "seconds": result["seconds"], "accuracy": accuracies}
    prompt = None if start is None else SoftPrompt(start, soft_prompt(model))
    return model, measured | {"loss": sum(last) / len(last) if last else None}, prompt


def accuracies_of(seeds: list[dict]) -> str:
    tests = seeds[0]["accuracy"]
    return "; ".join(f"{test} " + " ".join(f"{seed['accuracy'][test]:.2f}" for seed in seeds) for test in tests)


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(PeftMethodsArguments, __doc__).parse_args_and_config(argv)
    choose_methods(args, "base")  # a wrong name shows now rather than after the pretraining
    with course_run("peft_methods", args) as run:
        documents = [] if args.label_column else course_documents(args)
        task = load_task(args, documents)
        base, tokenizer, says = load_base(args, documents)
        check_labels(tokenizer, task.labels)
        seeds = range(args.seed, args.seed + args.seeds)

        methods = choose_methods(args, base)
        searched = methods.pop(DISCRETE, methods) is None
        runs, soft_prompts, matrices = {}, {}, {}
        if args.model_name_or_path is None and "full" in methods:
            # Is it the pretraining that helps?
            runs["full, random weights"] = [
                run_method(args, methods["full"], base, task, tokenizer, seed, random_weights=True)[1]
                for seed in seeds
            ]
        for name, method in methods.items():
            runs[name] = []
            for seed in seeds:
                model, measured, prompt = run_method(args, method, base, task, tokenizer, seed)
                runs[name].append(measured)
                if seed == args.seed and prompt is not None:
                    soft_prompts[name] = prompt
                if seed == args.seed and name.startswith("LoRA"):
                    matrices = lora_weights(model)
                if seed == args.seed and name != "not tuned":
                    model.save_pretrained(run.folder / name.replace(", ", "-").replace(" ", "_"))
            print(f"{name}: {runs[name][0]['trained']:,} parameters; {accuracies_of(runs[name])}", flush=True)

        if searched:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            sizes = args.virtual_tokens, args.search_budget
            found = [search_discrete_prompt(model, task, tokenizer, *sizes, seed=seed) for seed in seeds]
            runs[DISCRETE] = [measured for _, measured in found]
            prompts = ", ".join(repr(prompt) for prompt, _ in found)
            print(f"{DISCRETE}: {prompts}; {accuracies_of(runs[DISCRETE])}", flush=True)

        # LoRA: rank and alpha at one seed, and what its merge costs
        lora = []
        ids = encode_rows(next(iter(task.tests.values()))[:64], task.template, tokenizer)["input_ids"]
        for rank in args.lora_ranks if any(name.startswith("LoRA") for name in methods) else ():
            for factor in (1, 8):
                method = lora_method(rank, factor * rank, args.learning_rate_scale)
                model, measured, _ = run_method(args, method, base, task, tokenizer, args.seed)
                errors = {
                    name: merge_errors(model, ids.to(model.device), dtype)
                    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
                }
                lora.append({"rank": rank, "alpha": factor * rank, **measured, "merge": errors})

        words = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach().float()
        adapters = adapter_rows(words, soft_prompts, matrices)
        plot_adapters(adapters, run.folder / "adapters.png")
        summary = summarise(runs)
        run.draw(plot_methods, method_rows(summary, lora, adapters))
        note = (
            f"Task: {task.name} {len(task.train)} rows for tuning, "
            + ", ".join(f"{len(rows)} {test}" for test, rows in task.tests.items())
            + f". Base: {says}. {args.steps} steps of {args.batch_size} rows; "
            + (f"{args.seeds} seeds, 95 % t intervals. " if args.seeds > 1 else "one seed, which ranks nothing. ")
            + "An answer is right if it is the likeliest token of the whole vocabulary."
            + (" The second table is one seed." if lora else "")
        )
        tables = [method_table(summary), *([lora_table(lora)] if lora else [])]
        return run.finish(tables, note, {"methods": summary, "lora": lora})


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
