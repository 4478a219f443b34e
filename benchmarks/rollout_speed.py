"""
Tokens a second of rollouts: the engine against the stock loop as TRL's transformers path calls it, in one process.

```bash
python benchmarks/rollout_speed.py --output results/rollouts/speed.json
```

A random Qwen2 (hidden 512, 8 layers, vocabulary 32,000) in fp32, sampling at temperature 1. Prompts are as long as
GSM8K's with some words around them (80 to 250 tokens, uniform), completions as its solutions: log-normal with the
median 111 and the spread 0.42 of the 7,473 training solutions (words, digits and signs counted), cut at 3 times the
median. `--divide 5` divides all of them. A logits processor ends each row at its length with EOS, on both sides; since
it looks at rows, the engine runs in step and hands it all rows, which costs the engine time that a trainer does not
spend. The stock side gets each prompt once for each row of its group, left-padded, and runs to the longest row.
"""

import itertools
import math
from functools import partial

import torch
from thinking_speed import SIZE
from timing import compare, make_parser, prepare, print_table, setting
from transformers import LogitsProcessor, LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM

from hf_evidenceflow import RolloutEngine, ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.thinking.thinking_rollout import collect_thinking


MEDIAN, SPREAD = 111, 0.42


class EndAt(LogitsProcessor):
    """Lets row r end with its token `lengths[r]`, and not before."""

    def __init__(self, lengths, prompt_length, eos):
        self.lengths, self.prompt_length, self.eos = lengths, prompt_length, eos

    def __call__(self, input_ids, scores):
        last = self.lengths == input_ids.shape[1] - self.prompt_length + 1
        eos = scores[:, self.eos].clone()
        scores = scores.masked_fill(last[:, None], -math.inf)
        scores[:, self.eos] = torch.where(last, eos, -math.inf)
        return scores


def make_load(
    prompts: int,
    group: int,
    divide: int,
    seed: int = 0,
    shortest: int = 80,
    longest: int = 250,
    spread: float = SPREAD,
):
    """Left-padded prompts, each `group` times, their mask and the length of each completion."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randint(shortest, longest + 1, (prompts,), generator=random) // divide
    longest = int(sizes.max())
    ids = torch.randint(2, SIZE["vocab_size"], (prompts, longest), generator=random)
    mask = (torch.arange(longest) >= longest - sizes[:, None]).long()
    lengths = (torch.randn(prompts * group, generator=random) * spread).exp() * MEDIAN / divide
    lengths = lengths.round().clamp(2, 3 * MEDIAN // divide).long()
    return (ids * mask).repeat_interleave(group, 0), mask.repeat_interleave(group, 0), lengths


def make_model(mode: str, size: dict = SIZE):
    """A plain model for mode `plain`, else a thinking one with the same weights."""
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM(Qwen2Config(**size))
    if mode == "plain":
        return plain.eval()
    model = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**size, thinking_mode=mode, thinking_answer_start=None))
    model.load_state_dict(plain.state_dict(), strict=False)
    return model.eval()


def generate(model, load, engine=None):
    """One rollout; with recording, as a trainer needs it."""
    ids, mask, lengths = load
    torch.manual_seed(0)
    processors = LogitsProcessorList([EndAt(lengths, ids.shape[1], SIZE["eos_token_id"])])
    options = {} if engine is None else {"custom_generate": engine}
    with collect_thinking():
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=int(lengths.max()),
            do_sample=True,
            top_k=0,
            logits_processor=processors,
            **options,
        )


def parse(argv=None):
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--modes", nargs="+", default=["plain", "none", "projection", "embedding"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--group", nargs="+", type=int, default=[8])
    parser.add_argument("--divide", nargs="+", type=int, default=[5])
    return parser.parse_args(argv)


def measure(model, load, rounds: int) -> dict:
    """Both sides in turn, with tokens a second."""
    candidates = {
        "stock": partial(generate, model, load),
        "engine": lambda: generate(model, load, RolloutEngine()),  # checks the model's attention each time
    }
    rows = compare(candidates, rounds)
    for row in rows.values():
        row["tokens_per_second"] = round(int(load[2].sum()) / row["seconds"], 1)
    return rows


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    prepare(args)
    results = {"setting": setting(args, "rollout_speed", argv), "points": []}
    for mode in args.modes:
        model = make_model(mode)
        for divide, group, prompts in itertools.product(args.divide, args.group, args.prompts):
            load = make_load(prompts, group, divide)
            rows = measure(model, load, args.rounds)
            point = {"mode": mode, "divide": divide, "group": group, "prompts": prompts}
            results["points"].append(point | {"tokens": int(load[2].sum()), "table": rows})
            print_table(f"{mode}: {prompts} prompts x {group}, lengths / {divide}", rows)
            if args.output:
                atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
