"""
LayerSkip (Elhoushi et al. 2024, arXiv 2404.16710): train a causal language model, new or pretrained, so that its first
layers draft for the whole, and measure what self-speculation gains from it.

```bash
python recipes/layer_skip.py --config recipes/configs/layer_skip/smoke.yaml
```

`smoke.yaml` takes a minute on two CPU cores, on generated text. A checkpoint on text of one's own:

```bash
python recipes/layer_skip.py --config recipes/configs/layer_skip/smollm2.yaml --train_file train.txt \
    --validation_file validation.txt --output_dir outputs/smollm2-skip
```

The training is that of `pretrain_clm.py`, with all of its options: `layer_dropout` skips layers, the early-exit loss
is `evidence_layer_weights: layer_skip` with the scale `evidence_weight` and the `evidence_layer_curriculum`.

Then rows of the validation text begin prompts, and each pair of a draft depth and a draft length decodes greedily
with `SelfSpeculation` and with stock `assistant_early_exit`, one sequence at a time, in turn with full depth. A ratio
is the median over the rounds of its tokens per second divided by full depth's in the same round. `SelfSpeculation`
writes what full depth writes, or the run fails; the table says whether stock does.

Outputs, in `output_dir`: those of `pretrain_clm.py`, `layer_skip.md` (the table), `layer_skip.json`.
"""

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import is_peft_model

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.early_exit import FULL_DEPTH, GreedyDecoding, SelfSpeculation, Speed, in_turn
from hf_evidenceflow.early_exit.report import print_tables
from hf_evidenceflow.recipes import pretrain_clm
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class LayerSkipArguments(pretrain_clm.ScriptArguments):
    """
    Model, data and measurement.

    Args:
        draft_depths (`list[int]`, *optional*):
            Layers that draft. If not given, a quarter and a half of all.
        draft_lengths (`list[int]`, *optional*, defaults to `[4, 8]`):
            Tokens that are drafted at most before the model verifies them.
        draft_vocab_size (`int`, *optional*):
            Tokens that a draft chooses from, the most frequent of the training text. If not given, all.
        prompts (`int`, *optional*, defaults to `8`):
            Prompts that are decoded; each is the beginning of a validation row.
        prompt_tokens (`int`, *optional*, defaults to `16`):
            Tokens of a prompt.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Tokens that are decoded per prompt at most.
        rounds (`int`, *optional*, defaults to `5`):
            Rounds of the timing.
        clock (`str`, *optional*, defaults to `"wall"`):
            `wall`, or `cpu`: only the seconds in which the process had a core, for a busy machine.
    """

    draft_depths: list[int] | None = None
    draft_lengths: list[int] = field(default_factory=lambda: [4, 8])
    draft_vocab_size: int | None = None
    prompts: int = 8
    prompt_tokens: int = 16
    max_new_tokens: int = 64
    rounds: int = 5
    clock: str = field(default="wall", metadata={"choices": ["wall", "cpu"]})

    def __post_init__(self):
        super().__post_init__()
        check_least(self, prompts=1, prompt_tokens=1, max_new_tokens=1, rounds=1)
        if self.prompt_tokens > self.block_size:
            raise ValueError(f"`prompt_tokens` is {self.prompt_tokens}, but rows have {self.block_size} tokens.")


def frequent_tokens(rows, count: int, vocab_size: int) -> list[int]:
    """The `count` most frequent tokens of rows."""
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])
        counts += torch.bincount(ids, minlength=vocab_size)
    return counts.argsort(descending=True, stable=True)[:count].tolist()


def measure(model, decoding: GreedyDecoding, args: LayerSkipArguments, vocabulary) -> dict:
    """Accept rates and speeds: of full depth, and a row for each depth, length and kind of drafts."""
    depths = args.draft_depths
    if depths is None:
        layers = model.config.get_text_config().num_hidden_layers
        depths = sorted({max(1, layers // 4), max(1, layers // 2)})
    full = decoding.outputs()
    tokens = sum(map(len, full))
    rows, candidates = {}, {FULL_DEPTH: decoding.full}
    for depth, length in [(depth, length) for depth in depths for length in args.draft_lengths]:
        speculation = SelfSpeculation(model, depth, length, vocabulary=vocabulary)
        own = decoding.outputs(custom_generate=speculation)
        stock, rounds, drafted = decoding.stock_outputs(depth, length)
        for kind, outputs, passes, accept_rate in (
            ("SelfSpeculation", own, speculation.rounds, speculation.accept_rate),
            ("assistant_early_exit", stock, rounds, (tokens - rounds) / drafted if drafted else float("nan")),
        ):
            name = f"{kind}, depth {depth}, {length} tokens"
            rows[name] = {
                "kind": kind,
                "depth": depth,
                "length": length,
                "accept_rate": accept_rate,
                "tokens_per_pass": tokens / passes,
                "identical": all(map(torch.equal, full, outputs)),
            }
        if not rows[f"SelfSpeculation, depth {depth}, {length} tokens"]["identical"]:
            raise RuntimeError(
                f"Self-speculation from depth {depth} wrote other tokens than full depth. Two tokens were equally "
                "likely within rounding: use `--dtype float32`, or other prompts."
            )
        candidates[f"SelfSpeculation, depth {depth}, {length} tokens"] = partial(decoding.speculative, speculation)
        candidates[f"assistant_early_exit, depth {depth}, {length} tokens"] = partial(decoding.stock, depth, length)
    speeds = in_turn(candidates, args.rounds, time.process_time if args.clock == "cpu" else None)
    for name, row in rows.items():
        row["speed"] = asdict(speeds[name])
    return {"new_tokens": tokens, "full_depth": asdict(speeds[FULL_DEPTH]), "rows": list(rows.values())}


def table(results: dict) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and cells."""
    full = Speed(**results["full_depth"])
    columns = ["drafts", "depth", "length", "accepted", "tokens a pass", "tokens/s", "ratio", "range", "identical"]
    cells = []
    for row in results["rows"]:
        speed = Speed(**row["speed"])
        cells.append(
            [
                *(row["kind"], str(row["depth"]), str(row["length"])),
                *(f"{row['accept_rate']:.3f}", f"{row['tokens_per_pass']:.2f}"),
                *(f"{speed.tokens_per_second:.1f}", f"{speed.ratio:.2f}x"),
                *(f"{speed.ratio_min:.2f} - {speed.ratio_max:.2f}", "yes" if row["identical"] else "no"),
            ]
        )
    return f"Self-speculation against full depth ({full.tokens_per_second:.1f} tokens/s)", columns, cells


def main(argv: list[str] | None = None) -> dict:
    results = {}

    def measure_trained(trainer, args, record):
        if not trainer.is_world_process_zero():
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = (model.merge_and_unload() if is_peft_model(model) else model).eval()
        rows = [trainer.eval_dataset[index] for index in range(min(args.prompts, len(trainer.eval_dataset)))]
        prompts = [torch.as_tensor(row["input_ids"])[None, : args.prompt_tokens] for row in rows]
        vocabulary = None
        if args.draft_vocab_size is not None:
            vocabulary = frequent_tokens(trainer.train_dataset, args.draft_vocab_size, model.vocab_size)
        results.update(measure(model, GreedyDecoding(model, prompts, args.max_new_tokens), args, vocabulary))
        folder = Path(trainer.args.output_dir)
        atomic_write_json(folder / "layer_skip.json", results)
        atomic_write_text(folder / "layer_skip.md", print_tables([table(results)]) + "\n")
        record.add(self_speculation=results)
        print(f"Table: {folder / 'layer_skip.md'}")

    pretrain_clm.main(argv, LayerSkipArguments, measure_trained)
    return results


if __name__ == "__main__":
    run_recipe(main)
