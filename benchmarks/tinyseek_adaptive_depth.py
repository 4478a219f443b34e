"""
Time that early exit saves in `generate` of a looped TinySeek, one row and several at a time, in one process.

```bash
python benchmarks/tinyseek_adaptive_depth.py --model outputs/tinyseek --output results/tinyseek/adaptive_depth.json
```

`--model` is a folder with a trained TinySeek and its tokenizer; prompts are the beginnings of documents of
`--dataset_name_or_path` (split `validation`), or of generated text. Without `--model` the model is random, of the
published size, and prompts are random tokens: exits at a fixed depth then show what the mechanism saves, and the
criteria mean nothing. A fixed depth is a confidence threshold of 0 with `min_layer`: every token but the first, which
comes from the prompt's pass, leaves there. `average_depth` counts all tokens. `agreement` is the share of the
generated positions at which the token is full depth's; they differ more easily behind a first difference.

Greedy on CPU in fp32; a row's end-of-text token is no end, so that all candidates write equally many tokens. All run
in turn, round after round; a ratio is the median over the rounds of candidate tokens per second / full-depth tokens
per second within a round. Nothing else should run on the machine.
"""

from dataclasses import asdict

import torch
from timing import prepare, setting
from tinyseek_options import make_parser, published_config
from tinyseek_reference import make_pair

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.text import generate_documents, load_documents
from hf_evidenceflow.early_exit import FULL_DEPTH, EarlyExitConfig, early_exit, in_turn
from hf_evidenceflow.models.loading import load_model


def load(args):
    """A model, and prompts `(B, P)` for the largest batch."""
    rows = max(args.batch_sizes)
    if args.model is None:
        _, model = make_pair(published_config(args))
        return model, torch.randint(2, args.vocab_size, (rows, args.prompt_tokens))
    model, tokenizer = load_model(args.model, device="cpu")
    if args.dataset_name_or_path is None:
        documents = generate_documents(train=0, validation=400)[1]
    else:
        documents = load_documents(args.dataset_name_or_path, split="validation")
    prompts = []
    for document in documents:
        ids = tokenizer(document, add_special_tokens=False).input_ids[: args.prompt_tokens]
        if len(ids) == args.prompt_tokens:
            prompts.append(ids)
        if len(prompts) == rows:
            return model, torch.tensor(prompts)
    raise ValueError(
        f"Only {len(prompts)} documents have {args.prompt_tokens} tokens, {rows} are needed: lower `--prompt_tokens` "
        "or `--batch_sizes`."
    )


def exit_configs(args, depth):
    """Settings of early exit by name."""
    configs = {
        f"fixed depth {fixed}": EarlyExitConfig(threshold=0.0, min_layer=fixed - 1)
        for fixed in args.depths or range(1, depth)
    }
    for threshold in args.confidences:
        configs[f"confidence {threshold:g}"] = EarlyExitConfig("confidence", threshold)
    for threshold in args.relative_changes:
        configs[f"relative change {threshold:g}"] = EarlyExitConfig("relative_change", threshold)
    return configs


def generate(model, prompts, new_tokens):
    """New tokens `(B, C)`."""
    output = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
    )
    return output[:, prompts.shape[1] :]


def measure(model, prompts, configs, args):
    """Depth, agreement and speed of all settings at one batch size."""
    expected = generate(model, prompts, args.new_tokens)
    depth = model.config.num_hidden_layers
    rows = {FULL_DEPTH: {"average_depth": float(depth), "agreement": 1.0, "identical_outputs": 1.0}}
    candidates = {FULL_DEPTH: lambda: generate(model, prompts, args.new_tokens).numel()}

    def adaptive(config):
        def run():
            with early_exit(model, config):
                return generate(model, prompts, args.new_tokens).numel()

        return run

    for name, config in configs.items():
        with early_exit(model, config) as exits:
            same = generate(model, prompts, args.new_tokens) == expected
        rows[name] = {
            "average_depth": exits.average_depth,
            "agreement": same.double().mean().item(),
            "identical_outputs": same.all(1).double().mean().item(),
        }
        candidates[name] = adaptive(config)
    for name, speed in in_turn(candidates, args.rounds).items():
        rows[name] |= asdict(speed)
    return rows


def main(argv=None):
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--model", help="folder of a trained TinySeek; without it the model is random")
    parser.add_argument("--dataset_name_or_path", help="text that prompts are taken from, with `--model`")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt_tokens", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--depths", type=int, nargs="+", help="fixed depths; all below the full one if not given")
    parser.add_argument("--confidences", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--relative_changes", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    args = parser.parse_args(argv)
    prepare(args)
    model, prompts = load(args)
    configs = exit_configs(args, model.config.num_hidden_layers)
    results = {
        "setting": setting(args, "tinyseek_adaptive_depth", argv) | {"config": model.config.to_diff_dict()},
        "batches": {},
    }
    for batch_size in args.batch_sizes:
        rows = measure(model, prompts[:batch_size], configs, args)
        results["batches"][str(batch_size)] = rows
        print(f"\nbatch of {batch_size}")
        for name, row in rows.items():
            print(
                f"  {name:22s} depth {row['average_depth']:5.2f}   {row['tokens_per_second']:8.1f} tokens/s   "
                f"{row['ratio']:.2f}x ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})   "
                f"agreement {row['agreement']:.3f}",
                flush=True,
            )
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
