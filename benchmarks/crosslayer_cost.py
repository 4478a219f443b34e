"""
Time and peak memory of each cross-layer variant against transformers' Llama, and of the three ways to sum scores.

```bash
python benchmarks/crosslayer_cost.py --output results/crosslayer/cost.json
python benchmarks/crosslayer_cost.py --lengths 512 1024 2048 4096 --cross --output results/crosslayer/cost_grid.json
```

A random model on CPU in fp32. At the first length and depth all `--variants` are measured, then some of them
(`--growth_variants`) at the further lengths and depths, one of the two changed at a time (`--cross`: each with each):

- training: forward, backward, clearing gradients;
- forward: without gradients or cache, one position's logits;
- decoding: one new token behind a cache of that length;
- generation (first point only): greedy `generate` behind a prompt of that length, seconds a token.

`--path_variants` are measured with each way to their scores that they can take (`score_path` is replaced) at all
points; `chosen` is what the model takes by itself, `fastest` what was faster here. A way that would hold more than
`--memory_limit_gb` of scores is left out.

All candidates of a table run in turn, round after round: times are medians, ratios (how many times as fast as Llama)
medians and ranges over the rounds. Peak memory is what the allocator holds at most above the start of a pass,
gradients included, by torch's profiler; it does not vary. `checks`: how many score matrices [B, A, T, T] are held at
once without gradients at 4 and 8 layers, and how many distinct ones are saved for the backward pass. A picture of the
growth is written beside the JSON file. Nothing else should run on the machine.
"""

from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from timing import compare, make_parser, peak_memory, prepare, print_table, setting
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.crosslayer import modeling_crosslayer
from hf_evidenceflow.models.crosslayer.configuration_crosslayer import VARIANTS
from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


LLAMA = "llama"
TRAINING, FORWARD, DECODING, GENERATION = "training", "forward", "decoding", "generation"
PATHS = ("running_sum", "concatenate", "products")
CHECKED_DEPTHS = (4, 8)
DECODED_TOKENS = 4  # in one timed run: one is too short a time


def make_model(args, variant, depth):
    """A random model; those of one depth have the same linear layers."""
    sizes = {
        "vocab_size": args.vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": depth,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "max_position_embeddings": max(args.lengths) + args.new_tokens + DECODED_TOKENS,
    }
    torch.manual_seed(0)
    if variant == LLAMA:
        return LlamaForCausalLM(LlamaConfig(**sizes))
    return CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(variant=variant, **sizes))


@contextmanager
def forced_path(path):
    """All passes inside take this way to summed scores; `None` leaves the choice to the model."""
    if path is None:
        yield
    else:
        with patch.object(modeling_crosslayer, "score_path", return_value=path):
            yield


def train(model, ids, path=None):
    model.train()
    with forced_path(path):
        model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def forward(model, ids, path=None):
    model.eval()
    with forced_path(path):
        model(ids, use_cache=False, logits_to_keep=1)


def filled_cache(model, ids):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model.eval()(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def decode(model, token, cache, path=None):
    model.eval()
    with forced_path(path):
        for _ in range(DECODED_TOKENS):
            model(token, **{CACHE: cache}, use_cache=True)
    cache.crop(-DECODED_TOKENS)


def generate(model, ids, new_tokens):
    model.eval().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )


def with_peaks(rows, steps):
    """Adds peak memory to rows of times, relative to the first."""
    peaks = {name: peak_memory(step) for name, step in steps.items()}
    reference = next(iter(peaks.values()))
    for name, peak in peaks.items():
        rows[name] |= {"peak_mb": round(peak / 1e6, 2), "peak_ratio": round(peak / reference, 3)}
    return rows


def random_ids(args, length):
    return torch.randint(1, args.vocab_size, (args.batch_size, length))


def measure_point(args, length, depth, variants, with_generation=False):
    """Tables of times and peaks of Llama and of variants at one length and depth."""
    models = {name: make_model(args, name, depth) for name in (LLAMA, *variants)}
    ids = random_ids(args, length)

    def steps(function, *arguments):
        return {name: partial(function, model, *arguments) for name, model in models.items()}

    tables = {}
    for kind, function in ((TRAINING, train), (FORWARD, forward)):
        tables[kind] = with_peaks(compare(steps(function, ids), args.rounds), steps(function, ids))
    decoding = {name: partial(decode, model, ids[:, -1:], filled_cache(model, ids)) for name, model in models.items()}
    tables[DECODING] = compare(decoding, args.rounds, units=DECODED_TOKENS)
    if with_generation:
        tables[GENERATION] = compare(steps(generate, ids, args.new_tokens), args.rounds, units=args.new_tokens)
        for row in tables[GENERATION].values():
            row["tokens_per_second"] = args.batch_size / row["seconds"]
    for kind, rows in tables.items():
        print_table(f"{length} tokens, {depth} layers: {kind}", rows)
    return {"length": length, "depth": depth, "tables": tables}


def possible_paths(args, config, length, depth):
    """Ways to the summed scores of a variant that can be taken, and fit into memory."""
    # One matrix a layer in training, and a few more that a layer works on
    needed = (depth + 4) * args.batch_size * args.heads * length**2 * 4
    fits = needed <= 1e9 * args.memory_limit_gb
    return [
        path for path in PATHS if (path == "concatenate" or fits) and (path != "running_sum" or config.scale_per_layer)
    ]


def measure_paths(args, length, depth):
    """For each variant and kind of pass: times and peaks of the ways to its scores, the chosen and the fastest one."""
    ids = random_ids(args, length)
    results = {}
    for variant in args.path_variants:
        model = make_model(args, variant, depth)
        config = model.config
        paths = possible_paths(args, config, length, depth)
        tables = {}
        for kind, function in ((TRAINING, train), (FORWARD, forward)):
            steps = {path: partial(function, model, ids, path) for path in paths}
            tables[kind] = with_peaks(compare(steps, args.rounds), steps)
        cache = filled_cache(model, ids)
        steps = {path: partial(decode, model, ids[:, -1:], cache, path) for path in paths}
        tables[DECODING] = compare(steps, args.rounds, units=DECODED_TOKENS)
        results[variant] = {}
        for kind, rows in tables.items():
            positions = 1 if kind == DECODING else length
            chosen = modeling_crosslayer.score_path("sdpa", config.scale_per_layer, positions)
            fastest = min(rows, key=lambda path: rows[path]["seconds"])
            results[variant][kind] = {"chosen": chosen, "fastest": fastest, "paths": rows}
            print_table(f"{variant}, {length} tokens, {depth} layers: {kind}; chosen {chosen}", rows)
    return {"length": length, "depth": depth, "variants": results}


def print_winners(points):
    """One line for each variant and point: the fastest way in each kind of pass, marked where another is chosen."""
    print("\nfastest way to the scores (* another one is chosen)")
    print(
        f"  {'variant':10s}{'tokens':>7s}{'layers':>7s}  " + "".join(f"{k:22s}" for k in (TRAINING, FORWARD, DECODING))
    )
    for point in points:
        for variant, kinds in point["variants"].items():
            cells = [row["fastest"] + "*" * (row["fastest"] != row["chosen"]) for row in kinds.values()]
            line = "".join(f"{cell:22s}" for cell in cells)
            print(f"  {variant:10s}{point['length']:7d}{point['depth']:7d}  {line}", flush=True)


def count_saved(model, ids, path):
    """Distinct score matrices that a training pass saves for its backward pass."""
    length, size = ids.shape[1], ids.shape[0] * model.config.num_attention_heads * ids.shape[1] ** 2
    kept = []

    def keep(tensor):  # held until the end, so that no address is used twice
        if tensor.shape[-1:] == (length,) and tensor.untyped_storage().nbytes() == size * tensor.element_size():
            kept.append(tensor)
        return tensor

    with forced_path(path), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.train()(ids, labels=ids, use_cache=False).loss
    count = len({tensor.untyped_storage().data_ptr() for tensor in kept})
    loss.backward()
    model.zero_grad(set_to_none=True)
    return count


def check_scores(args):
    """Score matrices that are held, for each variant that sums scores and each way that it can take."""
    length = args.lengths[0]
    # A matrix is told by its size, so the length must not divide the width of another tensor
    widths = [
        args.hidden_size // args.heads * args.kv_heads,
        args.hidden_size,
        args.intermediate_size,
        args.vocab_size,
    ]
    while any(count * width % length == 0 for width in widths for count in range(1, max(CHECKED_DEPTHS) + 1)):
        length += 1
    ids = random_ids(args, length)
    matrix = args.batch_size * args.heads * length**2 * 4
    names = [name for name in args.variants if VARIANTS[name].get("cross_layer_stream") == "scores"]
    results = {"length": length, "matrix_bytes": matrix, "variants": {}}
    base_peaks = {}
    for depth in CHECKED_DEPTHS:
        step = partial(forward, make_model(args, LLAMA, depth), ids)
        step()
        base_peaks[depth] = peak_memory(step)
    print(f"\nscore matrices held, {length} tokens, {' and '.join(map(str, CHECKED_DEPTHS))} layers")
    for name in names:
        models = {depth: make_model(args, name, depth) for depth in CHECKED_DEPTHS}
        results["variants"][name] = {}
        for path in possible_paths(args, models[CHECKED_DEPTHS[0]].config, length, max(CHECKED_DEPTHS)):
            steps = {depth: partial(forward, model, ids, path) for depth, model in models.items()}
            held = {depth: peak_memory(step, matrix) // matrix for depth, step in steps.items()}
            saved = {depth: count_saved(model, ids, path) for depth, model in models.items()}
            row = {
                "extra_peak_bytes": {depth: peak_memory(step) - base_peaks[depth] for depth, step in steps.items()},
                "matrices_held_in_inference": held,
                "inference_does_not_grow_with_depth": len(set(held.values())) == 1,
                "matrices_saved_in_training": saved,
                "at_most_one_a_layer_and_the_sum": all(count <= depth + 1 for depth, count in saved.items()),
            }
            results["variants"][name][path] = row
            print(
                f"  {name:6s} {path:12s} inference {list(held.values())}, above Llama's peak "
                f"{[round(extra / 1e6, 1) for extra in row['extra_peak_bytes'].values()]} MB; "
                f"saved in training {list(saved.values())}",
                flush=True,
            )
    return results


def draw(points, path):
    """Seconds of training and of a decoded token, and training's peak, against length and against depth."""
    figure = new_figure((12, 7))
    from matplotlib.ticker import (  # behind `new_figure`, whose error names the package
        LogLocator,
        NullFormatter,
        ScalarFormatter,
    )

    first = points[0]
    panels = ((TRAINING, "seconds", "training, s"), (DECODING, "seconds", "one token, s"), (TRAINING, "peak_mb", "MB"))
    titles = ("training", "decoding", "training, peak memory")
    for row, (across, fixed) in zip(figure.subplots(2, 3), (("length", "depth"), ("depth", "length"))):
        line = sorted((p for p in points if p[fixed] == first[fixed]), key=lambda point: point[across])
        names = [name for name in line[-1]["tables"][TRAINING] if all(name in p["tables"][TRAINING] for p in line)]
        for axes, (kind, value, label), title in zip(row, panels, titles):
            for index, name in enumerate(names):
                axes.plot(
                    [point[across] for point in line],
                    [point["tables"][kind][name][value] for point in line],
                    LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)],
                    marker="o",
                    color=COLOURS[index % len(COLOURS)],
                    label=name,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks([point[across] for point in line], [f"{point[across]:,}" for point in line])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            title += f", {first[fixed]:,} {'layers' if fixed == 'depth' else 'tokens'}"
            finish_panel(axes, title, "tokens" if across == "length" else "layers", label)
        row[0].legend(fontsize=8)
    return save_figure(figure, path)


def make_points(args):
    """Pairs of length and depth, the first one first."""
    first = (args.lengths[0], args.depths[0])
    if args.cross:
        further = [(length, depth) for depth in args.depths for length in args.lengths]
    else:
        further = [*((length, first[1]) for length in args.lengths), *((first[0], depth) for depth in args.depths)]
    return list(dict.fromkeys([first, *further]))


def parse(argv):
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 24])
    parser.add_argument("--cross", action="store_true", help="each length at each depth")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--growth_variants", nargs="*", choices=VARIANTS, default=["base", "v2m3", "v3m1", "v4m1", "v4m5"]
    )
    summing = [name for name, preset in VARIANTS.items() if preset.get("cross_layer_stream") == "scores"]
    parser.add_argument("--path_variants", nargs="*", choices=summing, default=["v4m1", "v4m4", "v4m5"])
    parser.add_argument("--batch_size", type=int, default=1, help="rows (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=16, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--memory_limit_gb", type=float, default=6.0)
    for option, size in (
        ("hidden_size", 256),
        ("intermediate_size", 688),
        ("heads", 4),
        ("kv_heads", 2),
        ("vocab_size", 2048),
    ):
        parser.add_argument(f"--{option}", type=int, default=size, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    prepare(args)
    first, *further = make_points(args)
    results = {"setting": setting(args, "crosslayer_cost", argv), "points": [], "paths": []}

    def keep():
        if args.output:
            atomic_write_json(args.output, results)

    results["points"].append(measure_point(args, *first, args.variants, with_generation=True))
    keep()
    for point in further if args.growth_variants else ():
        results["points"].append(measure_point(args, *point, args.growth_variants))
        keep()
    if args.output:
        draw(results["points"], args.output.with_suffix(".png"))
    results["checks"] = check_scores(args)
    for point in (first, *further) if args.path_variants else ():
        results["paths"].append(measure_paths(args, *point))
        keep()
    print_winners(results["paths"])
    keep()
    return results


if __name__ == "__main__":
    main()
