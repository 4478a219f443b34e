"""
Early exit of a causal language model, measured: what each exit layer is worth, how fast it decodes, what
self-speculation and confidence exit gain.

```bash
python recipes/train_from_scratch.py --config recipes/configs/train_from_scratch/smoke.yaml
python recipes/early_exit.py --config recipes/configs/early_exit/smoke.yaml \
    --model_name_or_path outputs/smoke-scratch --output_dir outputs/smoke-early-exit
```

Any causal LM whose logits are its final norm and head will do; one that was trained with cross-entropy at some layers
has exits that are worth something. `--dataset_name_or_path` takes a text file, a data file or a data set's name;
without it the text is generated. Half a minute on two CPU cores with `smoke.yaml`.

All speeds are greedy decoding of one sequence at a time; the candidates run in turn, and a ratio is the median over
the rounds of its tokens per second divided by full depth's in the same round. Self-speculation writes what full depth
writes, or the run fails.

Outputs, in `output_dir`: `early_exit.md` (the tables), `early_exit.json`, `early_exit.png`, `run.json` (the run
record).
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from transformers import set_seed

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.data.text import generate_documents, load_documents
from hf_evidenceflow.early_exit import (
    FULL_DEPTH,
    EarlyExitConfig,
    GreedyDecoding,
    SelfSpeculation,
    early_exit,
    exit_sweep,
    in_turn,
    threshold_sweep,
)
from hf_evidenceflow.early_exit.report import draw_exits, exit_tables, print_tables
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.run_folder.training_run import training_run


@dataclass
class EarlyExitArguments:
    """
    Arguments of the measurement.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder of a causal LM with its tokenizer.
        output_dir (`str`):
            Folder of the results.
        dataset_name_or_path (`str`, *optional*):
            Text file, data file with a `text` column, folder, or data set on the Hub. If not given, word problems are
            generated.
        dataset_split (`str`, *optional*, defaults to `"validation"`):
            Split of a data set.
        dataset_config (`str`, *optional*):
            Configuration of a data set.
        max_documents (`int`, *optional*, defaults to `64`):
            Rows that perplexity, accuracy and agreement are measured on: the documents' beginnings and, where they are
            too few, their further parts.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens of a row.
        batch_size (`int`, *optional*, defaults to `16`):
            Documents per pass.
        layers (`str`, *optional*, defaults to `"all"`):
            Exit layers of the sweep: `"all"`, `"every:k"` or `"last:k"`.
        criterion (`str`, *optional*, defaults to `"confidence"`):
            `"confidence"` or `"relative_change"`.
        thresholds (`list[float]`, *optional*, defaults to `[0.5, 0.7, 0.9, 0.99]`):
            Thresholds of the criterion.
        self_speculation (`bool`, *optional*, defaults to `True`):
            Whether each exit drafts for the whole model too. `False` for models that it cannot be used with, such as
            those with sliding windows.
        draft_tokens (`int`, *optional*, defaults to `10`):
            Tokens that self-speculation drafts at most.
        prompts (`int`, *optional*, defaults to `8`):
            Prompts that are decoded; each is the beginning of a document.
        prompt_tokens (`int`, *optional*, defaults to `16`):
            Tokens of a prompt.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Tokens that are decoded per prompt at most.
        rounds (`int`, *optional*, defaults to `5`):
            Rounds of the timing.
        device (`str`, *optional*):
            Device. If not given, the GPU where there is one.
        dtype (`str`, *optional*):
            Dtype of the weights. If not given, the checkpoint's.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the generated text.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether a former run in `output_dir` is replaced.
    """

    model_name_or_path: str
    output_dir: str
    dataset_name_or_path: str | None = None
    dataset_split: str = "validation"
    dataset_config: str | None = None
    max_documents: int = 64
    max_length: int = 256
    batch_size: int = 16
    layers: str = "all"
    criterion: str = "confidence"
    thresholds: list[float] = field(default_factory=lambda: [0.5, 0.7, 0.9, 0.99])
    self_speculation: bool = True
    draft_tokens: int = 10
    prompts: int = 8
    prompt_tokens: int = 16
    max_new_tokens: int = 64
    rounds: int = 5
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self):
        check_least(self, max_documents=1, batch_size=1, prompts=1, prompt_tokens=1, max_new_tokens=1, rounds=1)
        check_least(self, max_length=2)
        self.configs = [EarlyExitConfig(self.criterion, value, self.layers) for value in self.thresholds]


def load_rows(args: EarlyExitArguments, tokenizer) -> list[torch.Tensor]:
    """Token ids of the documents, each cut to a row; where they are too few, of their further rows."""
    if args.dataset_name_or_path is None:
        documents = generate_documents(train=1, validation=args.max_documents, seed=args.seed)[1]
    else:
        documents = load_documents(args.dataset_name_or_path, args.dataset_split, args.dataset_config)
    cut = {"truncation": True, "max_length": args.max_length} if len(documents) >= args.max_documents else {}
    pieces = [
        tokenizer(text, return_tensors="pt", **cut).input_ids[0].split(args.max_length)
        for text in documents[: args.max_documents]
    ]
    turns = chain.from_iterable(zip_longest(*pieces, fillvalue=()))
    rows = list(islice((row for row in turns if len(row) > 1), args.max_documents))
    if not rows:
        raise ValueError("No document has two tokens or more, so there is nothing to predict. Give longer text.")
    return rows


def make_batches(rows: list[torch.Tensor], batch_size: int) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches with their masks."""
    batches = []
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def measure_exits(model, decoding: GreedyDecoding, batches, args: EarlyExitArguments) -> tuple[list[dict], dict]:
    """A row for each exit depth, with what only timing in turn with all others tells left open; and the candidates."""
    rows, candidates = [], {}
    num_layers = model.config.get_text_config().num_hidden_layers
    full = decoding.outputs()
    for quality in exit_sweep(model, batches, args.layers):
        depth = round(quality.depth)
        row = {**asdict(quality), "depth": depth, "accept_rate": None}
        candidates[f"exit at {depth}"] = partial(decoding.truncated, depth)
        if args.self_speculation and depth < num_layers:
            speculation = SelfSpeculation(model, depth, args.draft_tokens)
            if not all(map(torch.equal, full, decoding.outputs(custom_generate=speculation))):
                raise RuntimeError(
                    f"Self-speculation from depth {depth} wrote other tokens than full depth. Two tokens were equally "
                    "likely within rounding: use `--dtype float32`, or other prompts."
                )
            row["accept_rate"] = speculation.accept_rate
            candidates[f"self-speculation from {depth}"] = partial(decoding.speculative, speculation)
        rows.append(row)
    return rows, candidates


def measure_thresholds(model, decoding: GreedyDecoding, batches, args: EarlyExitArguments) -> tuple[list[dict], dict]:
    """A row for each threshold, on the text and in generation; and the candidates."""
    rows, candidates = [], {}
    for config, quality in zip(args.configs, threshold_sweep(model, batches, args.configs)):
        generated = []
        with early_exit(model, config) as exits:
            for prompt in decoding.prompts:
                GreedyDecoding(model, [prompt], decoding.max_new_tokens).outputs()
                generated += exits.depths.flatten().tolist()
        average = sum(generated) / len(generated)
        rows.append({"threshold": config.threshold, **asdict(quality), "generated_depth": average})
        candidates[f"{config.criterion} {config.threshold}"] = partial(decoding.adaptive, config)
    return rows, candidates


def add_speeds(exits: list[dict], thresholds: list[dict], speeds: dict, criterion: str) -> None:
    """Writes tokens per second and ratios into the rows."""
    for row in exits:
        speculation = speeds.get(f"self-speculation from {row['depth']}")
        row["speed"] = asdict(speeds[f"exit at {row['depth']}"])
        row["self_speculation_speed"] = None if speculation is None else asdict(speculation)
    for row in thresholds:
        row["speed"] = asdict(speeds[f"{criterion} {row['threshold']}"])


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(EarlyExitArguments, __doc__).parse_args_and_config(argv)
    set_seed(args.seed)
    with training_run(args.output_dir, overwrite=args.overwrite, early_exit=args) as run:
        model, tokenizer = load_model(args.model_name_or_path, device=args.device, dtype=args.dtype)
        documents = load_rows(args, tokenizer)
        batches = make_batches(documents, args.batch_size)
        prompts = [row[None, : args.prompt_tokens] for row in documents[: args.prompts]]
        decoding = GreedyDecoding(model, prompts, args.max_new_tokens)

        exits, exit_candidates = measure_exits(model, decoding, batches, args)
        thresholds, threshold_candidates = measure_thresholds(model, decoding, batches, args)
        speeds = in_turn({FULL_DEPTH: decoding.full, **exit_candidates, **threshold_candidates}, args.rounds)
        add_speeds(exits, thresholds, speeds, args.criterion)

        results = {"full_depth": asdict(speeds[FULL_DEPTH]), "exits": exits, "thresholds": thresholds}
        folder = Path(args.output_dir)
        atomic_write_json(folder / "early_exit.json", results)
        draw_exits(exits, thresholds, folder / "early_exit.png")
        markdown = print_tables(exit_tables(exits, thresholds, speeds[FULL_DEPTH].tokens_per_second))
        atomic_write_text(folder / "early_exit.md", f"{markdown}\n\n![exits](early_exit.png)\n")
        run.record.add(metrics=results)
        print(f"Tables: {folder / 'early_exit.md'}\nPicture: {folder / 'early_exit.png'}")
    return results


if __name__ == "__main__":
    run_recipe(main)
