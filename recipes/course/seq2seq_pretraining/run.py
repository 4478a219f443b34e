"""
Two ways to pretrain on the same text: GPT's causal LM, and T5's span corruption; then both fill the same gaps.

```bash
python recipes/course/seq2seq_pretraining/run.py --config recipes/configs/course/seq2seq_pretraining.yaml
python recipes/course/seq2seq_pretraining/run.py --text_file my_text.txt --steps 9000 --vocab_size 2000
```

The first command takes two minutes on one CPU core.

1. One tokenizer and one set of rows for both. The rows are as long as makes T5's inputs exactly `input_length` tokens.
2. A GPT-2 learns to predict each next token. A T5 (encoder and decoder, gated as in v1.1) gets the rows with 15 % of
   their tokens masked in spans, each span replaced by a sentinel, and learns to write the masked spans. Each time that
   a row is taken its spans are drawn anew.
3. Held-out perplexity of the GPT-2; held-out loss of the T5 and the share of masked spans that it fills exactly.
4. Gaps of 1 to `longest_gap` tokens in held-out rows, the same for both: the T5 sees both sides, the GPT-2 goes on
   from the left side. The GPT-2 cannot say where a gap ends and its first tokens count, as many as the gap has; the T5
   is measured in the same way, and beside it more strictly, where it has to end the gap too.

The two have the same widths, layers a stack, steps and rows, so not the same parameters and compute: the T5 has two
stacks, and learns from one token in seven where the GPT-2 learns from all. It is a comparison of what each can do with
the text around a gap, not of their efficiency.

Outputs, in `output_dir`: `seq2seq_pretraining.md`, `seq2seq_pretraining.png`, `samples.json` (gaps with both
fillings), the models `gpt` and `t5`, `metrics.json`, `run.json`.

Sources: Radford et al. 2018 and 2019 (GPT, GPT-2), Raffel et al. 2020 (T5, 1910.10683).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainingArguments

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.packing import TokenRows, pack_rows
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.evaluation.statistics import mean_t_interval, paired_difference, proportion_interval
from hf_evidenceflow.recipes.course.seq2seq_pretraining.filling_plots import filling_rows, plot_filling
from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_filling import (
    draw_gaps,
    fill_from_both_sides,
    fill_from_the_left,
    share_of_exact_spans,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_likelihood import nats_from_both_sides, nats_from_the_left
from hf_evidenceflow.recipes.course.seq2seq_pretraining.sentinel_tokenizer import (
    END_OF_TARGET,
    sentinel_ids,
    train_sentinel_tokenizer,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.small_models import gpt2, t5
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_collator import SpanCorruptionCollator
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_corruption import count_noise, raw_length
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.recipes.course.shared.stages import run_stage, stage_settings
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


GPT, T5 = "GPT-2", "T5"


@dataclass
class Seq2SeqPretrainingArguments(CourseArguments):
    """
    Arguments of the recipe, beside those of every recipe of the course.

    Args:
        steps (`int`, *optional*, defaults to `3000`):
            Optimizer steps of each model.
        equal_learned_tokens (`bool`, *optional*, defaults to `False`):
            Whether the T5 takes more steps, so that both learn to predict equally many tokens of the text: of a row a
            GPT-2 predicts each token, a T5 the masked ones only.
        batch_size (`int`, *optional*, defaults to `32`):
            Rows a step.
        learning_rate (`float`, *optional*, defaults to `2e-3`):
            Highest learning rate of both.
        width (`int`, *optional*, defaults to `64`):
            Size of the hidden states, a multiple of 16.
        layers (`int`, *optional*, defaults to `2`):
            Layers of the GPT-2, and of each of the T5's two stacks.
        vocab_size (`int`, *optional*, defaults to `800`):
            Tokens of the tokenizer, without the sentinels.
        sentinels (`int`, *optional*, defaults to `32`):
            Sentinel tokens.
        input_length (`int`, *optional*, defaults to `32`):
            Tokens of a corrupted input, with sentinels and EOS.
        noise_density (`float`, *optional*, defaults to `0.15`):
            Share of the tokens that is masked.
        mean_span_length (`float`, *optional*, defaults to `3.0`):
            Mean length of a masked span.
        validation_share (`float`, *optional*, defaults to `0.1`):
            Share of the documents that is held out.
        eval_rows (`int`, *optional*, defaults to `300`):
            Most held-out rows for the losses and the masked spans.
        gaps (`int`, *optional*, defaults to `600`):
            Gaps that both models fill.
        longest_gap (`int`, *optional*, defaults to `4`):
            Tokens of the longest gap; all lengths from 1 on take turns. With these rows the T5 is trained on two spans
            of five tokens together, so that it has seen none of more than four.
        margin (`int`, *optional*, defaults to `8`):
            Fewest tokens on either side of a gap.
        methods (`list[str]`, *optional*):
            `gpt-2`, `t5` or parts of these; `None`: both.
    """

    may_be_zero: ClassVar[frozenset[str]] = CourseArguments.may_be_zero | {"margin"}

    output_dir: str = "outputs/seq2seq_pretraining"
    steps: int = 3000
    equal_learned_tokens: bool = False
    batch_size: int = 32
    learning_rate: float = 2e-3
    width: int = 64
    layers: int = 2
    vocab_size: int = 800
    sentinels: int = 32
    input_length: int = 32
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    validation_share: float = 0.1
    eval_rows: int = 300
    gaps: int = 600
    longest_gap: int = 4
    margin: int = 8
    methods: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.methods = chosen_methods((GPT, T5), self.methods)
        if self.width < 16 or self.width % 16:
            raise ValueError(f"`width` must be a positive multiple of 16, the size of a head, got {self.width}.")
        row, _ = raw_length(self.input_length, self.noise_density, self.mean_span_length)
        if row < self.longest_gap + 2 * self.margin:
            raise ValueError(
                f"Gaps of {self.longest_gap} tokens with {self.margin} on either side do not fit into rows of {row}. "
                "Make `longest_gap` or `margin` smaller, or `input_length` larger."
            )


def make_rows(documents: Sequence[str], tokenizer, length: int) -> TokenRows:
    """The stream of all documents, cut into rows."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    return pack_rows(np.concatenate(encoded), np.cumsum([len(ids) for ids in encoded]), length)


def batched(rows: Sequence, size: int) -> list:
    """The rows, some at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def interval_cell(interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def difference_cell(difference: dict) -> str:
    return f"{difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def write_samples(path, tokenizer, gaps: Sequence, fillings: dict, margin: int, longest_gap: int) -> None:
    """The gaps with what was put into them; some are printed."""
    samples = []
    for index, gap in enumerate(gaps):
        sides = {"left": gap.left[-margin:], "hidden": gap.hidden, "right": gap.right[:margin]}
        sides |= {name: filled[index].tokens for name, filled in fillings.items()}
        samples.append({name: tokenizer.decode(tokens) for name, tokens in sides.items()})
    atomic_write_json(path, samples)
    for sample in samples[2 : 2 + longest_gap : 2]:
        print("... {left} [{hidden}] {right} ...".format(**sample))
        print("".join(f"  {name}: {sample[name]}\n" for name in fillings), end="")


def main(argv: list[str] | None = None) -> dict:
    parser = RecipeParser(Seq2SeqPretrainingArguments, __doc__)
    (args,) = parser.parse_args_and_config(argv)
    with course_run("seq2seq_pretraining", args) as run:
        length, target_length = raw_length(args.input_length, args.noise_density, args.mean_span_length)
        documents, held_out_documents = split_documents(course_documents(args), args.validation_share)
        tokenizer = train_sentinel_tokenizer(documents, args.vocab_size, args.sentinels)
        sentinels, end, pad = (
            sentinel_ids(tokenizer),
            tokenizer.convert_tokens_to_ids(END_OF_TARGET),
            tokenizer.pad_token_id,
        )
        rows, held_out = (make_rows(some, tokenizer, length) for some in (documents, held_out_documents))
        held_out = Subset(held_out, range(min(len(held_out), args.eval_rows)))
        print(
            f"{len(rows)} rows of {length} tokens; inputs of {args.input_length} and targets of {target_length}",
            flush=True,
        )

        def collator(seed):
            return SpanCorruptionCollator(sentinels, end, pad, args.noise_density, args.mean_span_length, seed)

        def trainer(name, model, steps, data_collator=None):
            settings = stage_settings(run.folder / name, args.seed, steps, args.learning_rate)
            settings |= {"per_device_train_batch_size": args.batch_size, "logging_steps": max(1, steps // 100)}
            return Trainer(
                model,
                TrainingArguments(**settings),
                data_collator=data_collator,
                train_dataset=rows,
                eval_dataset=held_out,
                processing_class=tokenizer,
            )

        learned = {GPT: length - 1, T5: count_noise(length, args.noise_density, args.mean_span_length)[0]}  # of a row
        steps = dict.fromkeys((GPT, T5), args.steps)
        if args.equal_learned_tokens:
            steps[T5] = round(args.steps * learned[GPT] / learned[T5])
        lengths = range(1, args.longest_gap + 1)
        ids = [held_out[index]["input_ids"].tolist() for index in range(len(held_out))]
        gaps = draw_gaps(ids, lengths, args.gaps, args.margin, args.seed)

        # Pretraining, held-out text, and the same gaps for both
        logs, metrics, table, ways, nats, fillings = {}, {}, [], {}, {}, {}
        if GPT in args.methods:
            causal = trainer("gpt", gpt2(tokenizer, length, args.width, args.layers), steps[GPT])
            logs["GPT-2, next token"] = run_stage(causal)["log"]
            loss, size = causal.evaluate()["eval_loss"], causal.model.num_parameters()
            metrics["causal"] = {"loss": loss, "perplexity": math.exp(loss), "parameters": size, "steps": steps[GPT]}
            table.append(["GPT-2, next token", f"{size}", f"{steps[GPT]}", f"{loss:.3f}", f"{math.exp(loss):.2f}", ""])
            model = causal.model.eval()
            fillings[GPT] = fill_from_the_left(model, gaps, pad)
            ways["GPT-2, left side"] = [filling.begins_right for filling in fillings[GPT]]
            nats["GPT-2, left side"] = nats_from_the_left(model, gaps, pad)
        if T5 in args.methods:
            spans = trainer("t5", t5(tokenizer, args.width, args.layers), steps[T5], collator(args.seed))
            logs["T5, span corruption"] = run_stage(spans)["log"]
            spans.data_collator = collator(args.seed + 1)  # the spans of the evaluation have a seed of their own
            loss, size = spans.evaluate()["eval_loss"], spans.model.num_parameters()
            model, corrupt = spans.model.eval(), collator(args.seed + 1)
            batches = [corrupt([held_out[i] for i in places]) for places in batched(range(len(held_out)), 64)]
            filled = proportion_interval(*share_of_exact_spans(model, batches, sentinels, end, pad))
            metrics["span_corruption"] = {"loss": loss, "exact_spans": filled._asdict(), "parameters": size}
            metrics["span_corruption"]["steps"] = steps[T5]
            table.append(
                ["T5, span corruption", f"{size}", f"{steps[T5]}", f"{loss:.3f}", "", interval_cell(filled)],
            )
            fillings[T5] = fill_from_both_sides(model, gaps, sentinels, end, pad)
            ways["T5, both sides"] = [filling.begins_right for filling in fillings[T5]]
            ways["T5, ends the gap too"] = [filling.exact for filling in fillings[T5]]
            nats["T5, both sides"] = nats_from_both_sides(model, gaps, sentinels, end, pad)
        headings = ["", "parameters", "steps", "held-out loss (nats per token)", "perplexity"]
        pretraining = markdown_table([*headings, "masked spans filled exactly (95 %)"], table)
        print(f"\n{pretraining}\n", flush=True)

        sizes = np.array([len(gap.hidden) for gap in gaps])
        shares = {
            name: {
                size: proportion_interval(int(np.array(hits)[sizes == size].sum()), int((sizes == size).sum()))
                for size in lengths
            }
            for name, hits in ways.items()
        }
        overall = {name: proportion_interval(sum(hits), len(hits)) for name, hits in ways.items()}
        costs = {name: mean_t_interval(values) for name, values in nats.items()}
        filling_table = markdown_table(
            ["gaps filled right", *(f"{size} tokens" for size in lengths), "all (95 %)", "nats per hidden token"],
            [
                [
                    name,
                    *(f"{shares[name][size].value:.2f}" for size in lengths),
                    interval_cell(overall[name]),
                    interval_cell(costs[name]) if name in costs else "",
                ]
                for name in ways
            ],
        )
        write_samples(run.folder / "samples.json", tokenizer, gaps, fillings, args.margin, args.longest_gap)
        run.draw(plot_filling, filling_rows(logs, shares, costs, metrics))
        note = f"{len(gaps)} gaps in {len(held_out)} held-out rows of {length} tokens, the same for both."
        if len(fillings) == 2:
            hits = [[float(hit) for hit in each] for each in list(ways.values())[:2]]
            metrics["difference"] = paired_difference(*hits)._asdict()
            metrics["difference_in_nats"] = paired_difference(*nats.values())._asdict()
            note += (
                f" T5 minus GPT-2 on them: {difference_cell(metrics['difference'])} filled right, "
                f"{difference_cell(metrics['difference_in_nats'])} nats per hidden token."
            )
        note += (
            f" Rows per step: {args.batch_size}. Learned tokens of a row: {learned[GPT]} by the GPT-2, {learned[T5]} "
            "by the T5. One seed: the intervals are over gaps, not over trainings."
        )
        metrics |= {
            "gaps": {name: interval._asdict() for name, interval in overall.items()},
            "gaps_by_length": {name: {size: share.value for size, share in by.items()} for name, by in shares.items()},
            "nats_per_hidden_token": {name: interval._asdict() for name, interval in costs.items()},
        }
        return run.finish([pretraining, filling_table], note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
