"""
How TinySeek's time grows with its experts, its loops and its context, and what decoding a token costs.

```bash
python benchmarks/tinyseek_scaling.py --output results/tinyseek/scaling.json
```

The published size on CPU in fp32, one thing changed at a time: forward and training passes (forward, backward,
clearing gradients) of 4 x 256 tokens for experts and loops, the forward of one row for the context, and one token
behind a filled cache. The published implementation (`tinyseek_reference.py`, same weights and logits) has no cache, so
decoding a token costs it a forward of the whole context; its line ends at `--reference_experts` and
`--reference_context`, beyond which a pass takes it many seconds. The two run in turn, round after round; times are
medians. Nothing else should run on the machine. A picture of the same name is written beside the JSON file.
"""

from functools import partial

import torch
from timing import compare, prepare, print_table, setting
from tinyseek_options import make_parser, published_config
from tinyseek_reference import check_equal, make_pair
from transformers import DynamicCache

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


OURS, REFERENCE = "ours", "published"
FORWARD, TRAINING, DECODING = "forward", "forward and backward", "decoding, one token"


@torch.no_grad()
def forward(module, ids, **kwargs):
    module(ids, **kwargs)


def train(module, loss):
    module.zero_grad(set_to_none=True)
    loss().backward()


@torch.no_grad()
def decode(model, token, cache):
    model(token, **{CACHE: cache}, use_cache=True)
    cache.crop(-1)


def measure_passes(args, ids, title, **changes):
    """Tables of forward and training passes at a changed size."""
    config = published_config(args, **changes)
    reference, model = make_pair(config)
    pair = config["other_experts"] <= args.reference_experts
    forwards, trainings = {}, {}
    if pair:  # first, so that it is what ours is compared with
        check_equal(reference, model, ids[:1])
        forwards[REFERENCE] = partial(forward, reference, ids)
        trainings[REFERENCE] = partial(train, reference, lambda: reference.loss(ids))
    forwards[OURS] = partial(forward, model, ids, use_cache=False)
    trainings[OURS] = partial(train, model, lambda: model(ids, labels=ids, use_cache=False).loss)
    tables = {FORWARD: compare(forwards, args.rounds)}
    reference.train()
    model.train()
    tables[TRAINING] = compare(trainings, args.rounds)
    print_tables(title, tables)
    return tables


def measure_contexts(args):
    """Tables of the forward of one row, and of one token behind it, for each context."""
    reference, model = make_pair(published_config(args))
    results = {}
    for context in args.contexts:
        ids = torch.randint(1, args.vocab_size, (1, context))
        whole = {}
        if context <= args.reference_context and args.experts <= args.reference_experts:
            whole[REFERENCE] = partial(forward, reference, ids)
        cache = DynamicCache(config=model.config)
        forward(model, ids[:, :-1], **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        ours = partial(forward, model, ids, use_cache=False, logits_to_keep=1)
        tables = {
            FORWARD: compare(whole | {OURS: ours}, args.rounds),
            DECODING: compare(whole | {OURS: partial(decode, model, ids[:, -1:], cache)}, args.rounds),
        }
        print_tables(f"context {context}", tables)
        results[context] = tables
    return results


def print_tables(title, tables):
    for kind, rows in tables.items():
        print_table(f"{title}: {kind}", rows)


def draw(results, path):
    """Four panels: time against experts, loops and context, and of a decoded token against context."""
    figure = new_figure((11, 8))
    from matplotlib.ticker import LogLocator  # behind `new_figure`, whose error names the missing package

    panels = (
        ("experts", (FORWARD, TRAINING), "routed experts"),
        ("loops", (FORWARD, TRAINING), "loops"),
        ("contexts", (FORWARD,), "tokens in one row"),
        ("contexts", (DECODING,), "tokens in context, for one new token"),
    )
    for axes, (part, kinds, label) in zip(figure.subplots(2, 2).flat, panels):
        points = results[part]
        for kind in kinds:
            style, marker = ("--", "s") if kind == TRAINING else ("-", "o")
            for name, colour in ((REFERENCE, COLOURS[1]), (OURS, COLOURS[0])):
                xs = [x for x in points if name in points[x][kind]]
                if xs:
                    ys = [points[x][kind][name]["seconds"] for x in xs]
                    axes.plot(xs, ys, style, marker=marker, color=colour, label=f"{name}, {kind}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(points), [f"{x:,}" for x in points])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        finish_panel(axes, x=label, y="seconds")
        axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return save_figure(figure, path)


def main(argv=None):
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--batch_size", type=int, default=4, help="rows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--expert_counts", type=int, nargs="+", default=[96, 384, 1536])
    parser.add_argument("--loop_counts", type=int, nargs="+", default=[1, 2, 4, 6, 8, 12])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--reference_experts", type=int, default=384)
    parser.add_argument("--reference_context", type=int, default=2048)
    args = parser.parse_args(argv)
    prepare(args)
    ids = torch.randint(1, args.vocab_size, (args.batch_size, args.length))
    results = {
        "setting": setting(args, "tinyseek_scaling", argv),
        "experts": {n: measure_passes(args, ids, f"{n} experts", other_experts=n) for n in args.expert_counts},
        "loops": {n: measure_passes(args, ids, f"{n} loops", n_layer=n) for n in args.loop_counts},
        "contexts": measure_contexts(args),
    }
    if args.output:
        atomic_write_json(args.output, results)
        draw(results, args.output.with_suffix(".png"))
    return results


if __name__ == "__main__":
    main()
