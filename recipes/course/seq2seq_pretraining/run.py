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

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import AutoConfig, AutoModelForCausalLM, T5ForConditionalGeneration, Trainer, TrainingArguments

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.packing import TokenRows, pack_rows
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.evaluation.statistics import paired_difference, proportion_interval
from hf_evidenceflow.recipes.course.seq2seq_pretraining.filling_plots import plot_filling
from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_filling import (
    draw_gaps,
    fill_from_both_sides,
    fill_from_the_left,
    share_of_exact_spans,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.sentinel_tokenizer import (
    END_OF_TARGET,
    sentinel_ids,
    train_sentinel_tokenizer,
)
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_collator import SpanCorruptionCollator
from hf_evidenceflow.recipes.course.seq2seq_pretraining.span_corruption import raw_length
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.recipes.course.shared.stages import run_stage, stage_settings
from hf_evidenceflow.report.tables import markdown_table
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class Seq2SeqPretrainingArguments(CourseArguments):
    """
    Arguments of the recipe, beside those of every recipe of the course.

    Args:
        steps (`int`, *optional*, defaults to `3000`):
            Optimizer steps of each model.
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
    """

    output_dir: str = "outputs/seq2seq_pretraining"
    steps: int = 3000
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

    def __post_init__(self):
        super().__post_init__()
        if self.width < 16 or self.width % 16:
            raise ValueError(f"`width` must be a positive multiple of 16, the size of a head, got {self.width}.")
        if self.longest_gap < 1:
            raise ValueError(f"`longest_gap` must be at least 1, got {self.longest_gap}.")


def make_rows(documents: Sequence[str], tokenizer, length: int) -> TokenRows:
    """The stream of all documents, cut into rows."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    return pack_rows(np.concatenate(encoded), np.cumsum([len(ids) for ids in encoded]), length)


def batched(rows: Sequence, size: int) -> list:
    """The rows, some at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def gpt2(args: Seq2SeqPretrainingArguments, tokenizer, length: int):
    """A GPT-2 with random weights."""
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=args.width,
        n_layer=args.layers,
        n_head=args.width // 16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return AutoModelForCausalLM.from_config(config)


def t5(args: Seq2SeqPretrainingArguments, tokenizer) -> T5ForConditionalGeneration:
    """A T5 with random weights; its decoder starts from padding."""
    config = AutoConfig.for_model(
        "t5",
        vocab_size=len(tokenizer),
        d_model=args.width,
        d_kv=16,
        d_ff=4 * args.width,
        num_layers=args.layers,
        num_heads=args.width // 16,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TARGET),
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)


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

        def trainer(name, model, data_collator=None):
            settings = stage_settings(run.folder / name, args.seed, args.steps, args.learning_rate)
            settings |= {"per_device_train_batch_size": args.batch_size, "logging_steps": max(1, args.steps // 100)}
            return Trainer(
                model,
                TrainingArguments(**settings),
                data_collator=data_collator,
                train_dataset=rows,
                eval_dataset=held_out,
                processing_class=tokenizer,
            )

        # Pretraining
        causal = trainer("gpt", gpt2(args, tokenizer, length))
        stages = {"GPT-2, next token": run_stage(causal)}
        spans = trainer("t5", t5(args, tokenizer), collator(args.seed))
        stages["T5, span corruption"] = run_stage(spans)
        parameters = [sum(weight.numel() for weight in each.model.parameters()) for each in (causal, spans)]

        # Held-out text; the spans of the evaluation are drawn from a seed of their own
        causal_loss = causal.evaluate()["eval_loss"]
        spans.data_collator = collator(args.seed + 1)
        span_loss = spans.evaluate()["eval_loss"]
        gpt_model, t5_model = causal.model.eval(), spans.model.eval()
        corrupt = collator(args.seed + 1)
        batches = [
            corrupt([held_out[i] for i in range(s, min(s + 64, len(held_out)))]) for s in range(0, len(held_out), 64)
        ]
        exact, total = share_of_exact_spans(t5_model, batches, sentinels, end, pad)
        filled = proportion_interval(exact, total)
        names = list(stages)
        pretraining = markdown_table(
            ["", "parameters", "held-out loss (nats a token)", "perplexity", "masked spans filled exactly (95 %)"],
            [
                [names[0], f"{parameters[0]}", f"{causal_loss:.3f}", f"{math.exp(causal_loss):.2f}", ""],
                [
                    *(names[1], f"{parameters[1]}", f"{span_loss:.3f}", ""),
                    f"{filled.value:.2f} [{filled.low:.2f}, {filled.high:.2f}] of {total}",
                ],
            ],
        )
        print(f"\n{pretraining}\n", flush=True)

        # The same gaps for both
        lengths = range(1, args.longest_gap + 1)
        ids = [held_out[index]["input_ids"].tolist() for index in range(len(held_out))]
        gaps = draw_gaps(ids, lengths, args.gaps, args.margin, args.seed)
        both = fill_from_both_sides(t5_model, gaps, sentinels, end, pad)
        left = fill_from_the_left(gpt_model, gaps, pad)
        ways = {
            "GPT-2, left side": [filling.begins_right for filling in left],
            "T5, both sides": [filling.begins_right for filling in both],
            "T5, ends the gap too": [filling.exact for filling in both],
        }
        shares = {
            name: {
                size: proportion_interval(
                    sum(hit for hit, gap in zip(hits, gaps) if len(gap.hidden) == size),
                    sum(len(gap.hidden) == size for gap in gaps),
                )
                for size in lengths
            }
            for name, hits in ways.items()
        }
        overall = {name: proportion_interval(sum(hits), len(hits)) for name, hits in ways.items()}
        filling_table = markdown_table(
            ["gaps filled right", *(f"{size} tokens" for size in lengths), "all (95 %)"],
            [
                [
                    name,
                    *(f"{shares[name][size].value:.2f}" for size in lengths),
                    f"{overall[name].value:.2f} [{overall[name].low:.2f}, {overall[name].high:.2f}]",
                ]
                for name in ways
            ],
        )
        difference = paired_difference(*([float(hit) for hit in hits] for hits in list(ways.values())[:2]))

        samples = [
            {
                "left": tokenizer.decode(gap.left[-args.margin :]),
                "hidden": tokenizer.decode(gap.hidden),
                "right": tokenizer.decode(gap.right[: args.margin]),
                "t5": tokenizer.decode(filling.tokens),
                "gpt": tokenizer.decode(guess.tokens),
            }
            for gap, filling, guess in zip(gaps, both, left)
        ]
        atomic_write_json(run.folder / "samples.json", samples)
        for sample in samples[2 : 2 + args.longest_gap : 2]:
            print(
                "... {left} [{hidden}] {right} ...\n  T5: {t5}\n  GPT-2: {gpt}".format(**sample).replace(" \n", "\n")
            )
        plot_filling(
            {name: stage["log"] for name, stage in stages.items()}, shares, run.folder / "seq2seq_pretraining.png"
        )
        note = (
            f"{len(gaps)} gaps in {len(held_out)} held-out rows of {length} tokens, the same for both; T5 minus GPT-2 "
            f"on them {difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]. {args.steps} steps of "
            f"{args.batch_size} rows each, one seed: the intervals are over gaps, not over trainings."
        )
        metrics = {
            "causal": {"loss": causal_loss, "perplexity": math.exp(causal_loss), "parameters": parameters[0]},
            "span_corruption": {"loss": span_loss, "exact_spans": filled._asdict(), "parameters": parameters[1]},
            "gaps": {name: interval._asdict() for name, interval in overall.items()},
            "gaps_by_length": {name: {size: share.value for size, share in by.items()} for name, by in shares.items()},
            "difference": difference._asdict(),
        }
        return run.finish([pretraining, filling_table], note, metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
