"""
Evaluate any causal LM: perplexity, perplexity behind the training length, most probable next tokens, continuations.

```bash
python recipes/pretrain_clm.py --config recipes/configs/pretrain_clm/smoke.yaml
python recipes/evaluate_lm.py --config recipes/configs/evaluate_lm/smoke.yaml
```

The model is a Hub name or a folder: a checkpoint, a `checkpoint-*` of a Trainer, or a PEFT adapter. On your own text
and prompts, without the long text:

```bash
python recipes/evaluate_lm.py --model_name_or_path outputs/llama-sft --output_dir outputs/llama-sft-evaluation \
    --dataset_name_or_path validation.txt --no_long_text --prompts "How are you?" "Name a color." \
    --prompt_template "User: {prompt}\\nAssistant:" --temperature 0.7 --top_p 0.9 --repetition_penalty 1.3
```

Without a data set the text is generated: the text that `pretrain_clm.py` holds out. Seconds on two CPU cores with
`smoke.yaml`; a GPU for a large model.

Outputs, in `output_dir`: `evaluation.md` (the report), `evaluation.json` (the run record with all results).
"""

import contextlib
import html
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import set_seed

import hf_evidenceflow  # noqa: F401  registers the model types
from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.data import load_split
from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents, load_documents
from hf_evidenceflow.data.token_cache import encode_documents
from hf_evidenceflow.data.token_ids import check_token_ids
from hf_evidenceflow.evaluation.chat_template import evaluation_chat_template_kwargs, parse_chat_template_kwargs
from hf_evidenceflow.evaluation.completions import render_prompts
from hf_evidenceflow.evaluation.continuations import continue_prompts, mean_repetition, repetition_table
from hf_evidenceflow.evaluation.perplexity import (
    bits_per_byte,
    perplexity_interval,
    perplexity_tables,
    position_limit,
    score_long_text,
    score_text,
)
from hf_evidenceflow.files import read_lines, readable_file
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.models.router_statistics import RouterStatistics, expert_modules
from hf_evidenceflow.probe.top_predictions import prediction_table, top_predictions
from hf_evidenceflow.recipes.command_line.number_checks import check_least, check_positive, check_share
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


CONTEXT_LENGTHS = (128, 256, 512, 1024, 2048)


@dataclass
class EvaluateLMArguments:
    """
    Arguments of the evaluation.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder of a causal LM, or of a PEFT adapter.
        output_dir (`str`):
            Folder of the results.
        base_model (`str`, *optional*):
            Base of an adapter. If not given, the one named in it.
        tokenizer_name_or_path (`str`, *optional*):
            Tokenizer. If not given, the model's.
        dtype, attn_implementation, device (`str`, *optional*):
            If not given, the checkpoint's, transformers' choice, and the GPU where there is one.
        dataset_name_or_path, dataset_config (`str`, *optional*):
            Text file, data file, folder, or data set on the Hub with its configuration. If not given, word problems
            are generated.
        dataset_split (`str`, *optional*, defaults to `"validation"`):
            Split.
        text_column, document_separator (`str`, *optional*, default to `"text"` and `"<|endoftext|>"`):
            Column of the text, and what ends a document in a text file.
        generated_documents (`int`, *optional*, defaults to `4000`):
            As in `pretrain_clm.py`: its held-out text is then the same.
        max_documents (`int`, *optional*):
            Documents used, from the first. If not given, all.
        perplexity, long_text, top_predictions, continuations (`bool`, *optional*, default to `True`):
            The parts; `--no_long_text` leaves one out.
        block_size, batch_size (`int`, *optional*, default to `512` and `8`):
            Tokens per row, and rows per pass, of the perplexity.
        context_lengths (`list[str]`, *optional*, defaults to `128,256,512,1024,2048`):
            Row lengths of the long text, with commas or spaces between them. Without the option, those that the text
            fills.
        bucket_size (`int`, *optional*):
            Positions that are reported together. If not given, the smallest context length.
        chunk_size (`int`, *optional*, defaults to `512`):
            Tokens of a long row in a pass; the passes share a KV cache.
        long_text_tokens (`int`, *optional*, defaults to `32768`):
            Tokens that the long text uses, at least one row.
        prompts (`list[str]`, *optional*):
            Prompts.
        prompts_file (`str`, *optional*):
            Instead: a text file with one prompt per line, or a data file with a `prompt` column and possibly
            `completion`, whose first token is then the actual next one. With neither, documents' beginnings.
        max_prompts, prompt_tokens (`int`, *optional*, default to `4` and `16`):
            Number of those beginnings, and their tokens.
        chat (`bool`, *optional*, defaults to `False`):
            Whether prompts are put into the tokenizer's chat template.
        chat_template_kwargs (`dict`, *optional*):
            With `chat`: further arguments of the template as JSON, such as `'{"enable_thinking": false}'`; `'{}'` for
            none. If not given, those that the folder's `run.json` says the model was trained with.
        prompt_template (`str`, *optional*):
            Instead: text around `{prompt}`; `\\n` is a line break.
        top_k (`int`, *optional*, defaults to `10`):
            Next tokens shown.
        every_position (`bool`, *optional*, defaults to `False`):
            Whether they are shown at each position of a prompt.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Tokens of a continuation at most.
        num_samples (`int`, *optional*, defaults to `1`):
            Sampled continuations per prompt, next to the greedy one.
        temperature, top_p (`float`, *optional*, default to `0.8` and `0.95`):
            Sampling.
        repetition_penalty (`float`, *optional*, defaults to `1.2`):
            Penalty of repeated tokens, compared with none; `1.0` leaves the comparison out.
        no_repeat_ngram_size (`int`, *optional*, defaults to `0`):
            With the penalty: n-grams of that size cannot stand twice; `0` allows it.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sampling.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether an evaluation in `output_dir` is replaced.
    """

    model_name_or_path: str
    output_dir: str
    base_model: str | None = None
    tokenizer_name_or_path: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    device: str | None = None
    dataset_name_or_path: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "validation"
    text_column: str = "text"
    document_separator: str | None = END_OF_TEXT
    generated_documents: int = 4000
    max_documents: int | None = None
    perplexity: bool = True
    long_text: bool = True
    top_predictions: bool = True
    continuations: bool = True
    block_size: int = 512
    batch_size: int = 8
    context_lengths: list[str] | None = None
    bucket_size: int | None = None
    chunk_size: int = 512
    long_text_tokens: int = 32768
    prompts: list[str] | None = None
    prompts_file: str | None = None
    max_prompts: int = 4
    prompt_tokens: int = 16
    chat: bool = False
    chat_template_kwargs: dict | str | None = None
    prompt_template: str | None = None
    top_k: int = 10
    every_position: bool = False
    max_new_tokens: int = 64
    num_samples: int = 1
    temperature: float = 0.8
    top_p: float = 0.95
    repetition_penalty: float = 1.2
    no_repeat_ngram_size: int = 0
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self):
        ones = ("batch_size", "chunk_size", "long_text_tokens", "max_prompts", "prompt_tokens", "top_k")
        ones += ("max_new_tokens", "generated_documents", "max_documents", "bucket_size")
        check_least(self, block_size=2, num_samples=0, no_repeat_ngram_size=0, seed=0, **dict.fromkeys(ones, 1))
        check_positive(self, "temperature", "repetition_penalty")
        check_share(self, "top_p")
        if self.context_lengths is not None:
            given = [self.context_lengths] if isinstance(self.context_lengths, str) else self.context_lengths
            parts = [part for item in given for part in str(item).split(",")]
            if not parts or not all(part.strip().isdecimal() and int(part) > 1 for part in parts):
                raise ValueError(f"`context_lengths` must be whole numbers of 2 or more, got {self.context_lengths}.")
            self.context_lengths = [int(part) for part in parts]
        if self.prompts is not None and self.prompts_file is not None:
            raise ValueError("Give one of `prompts` and `prompts_file`, not both.")
        if self.chat and self.prompt_template is not None:
            raise ValueError("Give one of `chat` and `prompt_template`, not both.")
        self.chat_template_kwargs = parse_chat_template_kwargs(self.chat_template_kwargs)
        if self.chat_template_kwargs and not self.chat:
            raise ValueError("`chat_template_kwargs` needs `chat`.")
        if (self.chat or self.prompt_template is not None) and self.prompts is None and self.prompts_file is None:
            raise ValueError("`chat` and `prompt_template` need `prompts` or `prompts_file`.")
        if self.prompt_template is not None:
            if "{prompt}" not in self.prompt_template:
                raise ValueError(f"`prompt_template` must hold {{prompt}}, got {self.prompt_template!r}.")
            self.prompt_template = self.prompt_template.replace("\\n", "\n")
        if self.document_separator is not None:
            self.document_separator = self.document_separator.replace("\\n", "\n")
        if not (self.perplexity or self.long_text or self.top_predictions or self.continuations):
            raise ValueError("All parts of the evaluation are left out. Leave one in.")


def load_text(args: EvaluateLMArguments) -> list[str]:
    """The documents."""
    if args.dataset_name_or_path is None:
        documents = generate_documents(args.generated_documents, max(1, args.generated_documents // 10))[1]
    else:
        documents = load_documents(
            args.dataset_name_or_path,
            args.dataset_split,
            args.dataset_config,
            args.text_column,
            args.document_separator,
        )
    return documents[: args.max_documents]


def load_prompts(args: EvaluateLMArguments, tokenizer, documents: list[str]) -> list[dict]:
    """Text and token ids of each prompt, and the token after it where it is known."""
    if args.prompts is None and args.prompts_file is None:
        rows = [tokenizer(document)["input_ids"] for document in documents[: args.max_prompts]]
        return [
            {
                "text": tokenizer.decode(ids[: args.prompt_tokens]),
                "ids": ids[: args.prompt_tokens],
                "next_id": ids[args.prompt_tokens] if len(ids) > args.prompt_tokens else None,
            }
            for ids in rows
        ]
    prompts, completions = args.prompts, None
    if args.prompts_file is not None:
        path = readable_file(args.prompts_file)
        if path.suffix in (".txt", ""):
            prompts = read_lines(path)
        else:
            rows = load_split(str(path), split="prompts", columns=("prompt",), texts=("prompt",))
            prompts = rows["prompt"][:]
            completions = rows["completion"][:] if "completion" in rows.column_names else None
    if not prompts:
        raise ValueError("There is no prompt in `prompts` or `prompts_file`. Give one.")
    kwargs = None
    if args.chat:
        if tokenizer.chat_template is None:
            raise ValueError("`chat` was given, but the tokenizer has no chat template. Give `prompt_template`.")
        kwargs = evaluation_chat_template_kwargs(args.chat_template_kwargs, args.model_name_or_path)
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    elif args.prompt_template is not None:
        prompts = [args.prompt_template.replace("{prompt}", prompt) for prompt in prompts]
    texts, ids = render_prompts(tokenizer, prompts, kwargs)
    following = [None] * len(texts)
    if completions is not None:
        following = [next(iter(tokenizer(text, add_special_tokens=False)["input_ids"]), None) for text in completions]
    return [{"text": text, "ids": row, "next_id": after} for text, row, after in zip(texts, ids, following)]


def measure_perplexity(model, ids, num_bytes: int, block_size: int, args: EvaluateLMArguments) -> tuple[dict, list]:
    """Results and tables of the perplexity, and of the router in a mixture of experts."""
    statistics = RouterStatistics(model) if expert_modules(model) else None
    with statistics or contextlib.nullcontext():
        score = score_text(model, ids, block_size, args.batch_size)
    bits = bits_per_byte(score.loss, len(ids), num_bytes)
    results = {**asdict(score), "bits_per_byte": bits, "text_tokens": len(ids), "text_bytes": num_bytes}
    interval = perplexity_interval(results.pop("row_losses"))
    results |= {"perplexity_low": interval.low, "perplexity_high": interval.high}
    spread = "-" if math.isnan(interval.low) else f"[{interval.low:.3f}, {interval.high:.3f}]"
    row = [f"{score.loss:.4f}", f"{score.perplexity:.3f}", spread, f"{score.accuracy:.4f}", f"{bits:.4f}"]
    columns = ["loss", "perplexity", "95 %, over rows", "accuracy", "bits per byte", "tokens"]
    tables = [(f"Perplexity in rows of {block_size}", columns, [[*row, f"{score.tokens:,}"]])]
    if statistics is not None:
        layers = [
            {"max_load": layer.max_load, "load_entropy": layer.entropy, "dead_experts": layer.dead}
            for layer in statistics.layers()
        ]
        results["router"] = statistics.summary() | {"layers": layers}
        cells = [[str(index), *(f"{value:.3f}" for value in layer.values())] for index, layer in enumerate(layers)]
        columns = ["layer", "busiest / mean load", "entropy of the load", "share of dead experts"]
        tables.append(("Load of the experts", columns, cells))
    return results, tables


def choose_lengths(args: EvaluateLMArguments, num_tokens: int, limit: int | None, notes: list[str]) -> list[int]:
    """The context lengths that the model and the text have room for; says which were cut."""
    lengths = args.context_lengths or list(CONTEXT_LENGTHS)
    if limit is not None and max(lengths) > limit:
        notes.append(f"The model has a table of {limit} positions: context lengths above that were cut to {limit}.")
        lengths = sorted({min(length, limit) for length in lengths})
    fitting = [length for length in lengths if length <= num_tokens]
    if args.context_lengths is None and 2 <= num_tokens < min(lengths):
        fitting = [num_tokens]
    if not fitting:
        raise ValueError(
            f"The text has {num_tokens} tokens, fewer than the smallest context length, {min(lengths)}. Take smaller "
            "`context_lengths`, or give longer text."
        )
    if max(lengths) > num_tokens:
        notes.append(f"The text has {num_tokens} tokens: context lengths above that were left out.")
    return fitting


def measure_continuations(model, tokenizer, prompts: list[dict], room: int, args: EvaluateLMArguments):
    """Results, table and texts of the ways of decoding."""
    penalties = {"repetition_penalty": args.repetition_penalty, "no_repeat_ngram_size": args.no_repeat_ngram_size}
    ways = {"greedy": {}}
    if args.num_samples:
        ways["sampled"] = {"num_samples": args.num_samples, "temperature": args.temperature, "top_p": args.top_p}
    if args.repetition_penalty != 1 or args.no_repeat_ngram_size:
        ways |= {f"{name}, penalised": settings | penalties for name, settings in list(ways.items())}
    ids = [prompt["ids"] for prompt in prompts]
    outputs = {
        name: continue_prompts(model, tokenizer, ids, room, seed=args.seed, **way) for name, way in ways.items()
    }
    means = {name: mean_repetition(items) for name, items in outputs.items()}
    results = {
        name: {"settings": way, "repetition": means[name], "continuations": outputs[name]}
        for name, way in ways.items()
    }
    rows = [
        [f"{place} {prompt['text']!r}", name, repr(item.text)]
        for place, prompt in enumerate(prompts)
        for name, items in outputs.items()
        for item in items
        if item.prompt == place
    ]
    return results, [repetition_table(means), ("Continuations", ["prompt", "decoding", "continuation"], rows)]


def evaluate(model, tokenizer, args: EvaluateLMArguments) -> tuple[dict, dict[str, list], list[str]]:
    """Results, tables by part, and notes."""
    results, tables, notes = {}, {}, []
    with_prompts = args.top_predictions or args.continuations
    generic = with_prompts and args.prompts is None and args.prompts_file is None
    documents = load_text(args) if args.perplexity or args.long_text or generic else []
    prompts = load_prompts(args, tokenizer, documents) if with_prompts else []
    limit = position_limit(model)
    trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for place, prompt in enumerate(prompts):
        check_token_ids(prompt["ids"] + [prompt["next_id"] or 0], model, "A prompt")
        if limit is not None and len(prompt["ids"]) >= limit:
            raise ValueError(f"Prompt {place} has {len(prompt['ids'])} tokens, but the model has {limit} positions.")

    if args.perplexity or args.long_text:
        ids, _ = encode_documents(documents, tokenizer)
        check_token_ids(ids, model, "The text")
    if args.perplexity:
        block_size = args.block_size if limit is None else min(args.block_size, limit)
        if block_size < args.block_size:
            notes.append(f"The model has a table of {limit} positions: `block_size` was cut to {limit}.")
        num_bytes = sum(len(document.encode("utf-8", errors="surrogatepass")) for document in documents)
        results["perplexity"], tables["Perplexity"] = measure_perplexity(model, ids, num_bytes, block_size, args)
    if args.long_text:
        lengths = choose_lengths(args, len(ids), limit, notes)
        if limit is None and trained is not None and max(lengths) > trained:
            notes.append(f"The model's `max_position_embeddings` is {trained}: behind it, it extrapolates.")
        scores = score_long_text(
            model,
            ids,
            lengths,
            bucket_size=args.bucket_size,
            chunk_size=args.chunk_size,
            max_tokens=args.long_text_tokens,
        )
        results["long_text"] = scores
        tables["Long text"] = perplexity_tables(scores)
    if args.top_predictions:
        results["top_predictions"], tables["Most probable next tokens"] = [], []
        for prompt in prompts:
            predictions = top_predictions(
                model, tokenizer, prompt["ids"], args.top_k, args.every_position, next_id=prompt["next_id"]
            )
            results["top_predictions"].append({"prompt": prompt["text"], "positions": predictions})
            tables["Most probable next tokens"].append(prediction_table(repr(prompt["text"]), predictions))
    if args.continuations:
        room = args.max_new_tokens
        if limit is not None:
            room = min(room, limit - max(len(prompt["ids"]) for prompt in prompts))
        if room < args.max_new_tokens:
            notes.append(f"The model has a table of {limit} positions: continuations were cut to {room} tokens.")
        results["continuations"], tables["Repetition"] = measure_continuations(model, tokenizer, prompts, room, args)
        results["prompts"] = [prompt["text"] for prompt in prompts]
    return results, tables, notes


def report(name: str, tables: dict[str, list], notes: list[str]) -> str:
    """Prints notes and tables; returns them in Markdown."""
    console, parts = Console(), [f"# Evaluation of {name}"]
    for note in notes:
        console.print(Text(f"Note: {note}", style="yellow"))
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    for part, part_tables in tables.items():
        parts.append(f"## {part}")
        for title, columns, rows in part_tables:
            wide = title == "Continuations"
            table = Table(title=Text(title), show_lines=wide)
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))  # brackets in a token are no markup
            console.print(table)
            cells = [list(map(markdown, row)) for row in rows]
            parts.append(f"### {markdown(title)}\n\n{markdown_table(columns, cells, align='l')}")
    return "\n\n".join(parts) + "\n"


def markdown(cell: str) -> str:
    """A cell whose characters mean themselves in Markdown."""
    cell = html.escape(cell, quote=False)
    return "".join(f"&#{ord(char)};" if char in "|*_`\\[]#" else char for char in cell)


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(EvaluateLMArguments, __doc__).parse_args_and_config(argv)
    set_seed(args.seed)
    folder = Path(args.output_dir).expanduser()
    if (folder / "evaluation.json").exists() and not args.overwrite:
        raise ValueError(f"`{folder}` holds an evaluation. Choose another `output_dir`, or pass `--overwrite`.")

    # `run.json` in this folder may be the record of the training
    with tempfile.TemporaryDirectory() as scratch, run_record(scratch, evaluation=args) as record:
        model, tokenizer = load_model(
            args.model_name_or_path,
            base_model=args.base_model,
            tokenizer=args.tokenizer_name_or_path,
            device=args.device,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
        )
        results, tables, notes = evaluate(model, tokenizer, args)
        record.add(metrics=results, notes=notes)
    atomic_write_text(folder / "evaluation.md", report(args.model_name_or_path, tables, notes))
    atomic_write_json(folder / "evaluation.json", record.data)
    print(f"Report: {folder / 'evaluation.md'}")
    return record.data["metrics"]


if __name__ == "__main__":
    run_recipe(main)
