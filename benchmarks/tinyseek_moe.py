"""
TinySeek against the published implementation, in one process: its block of experts alone, and the whole model.

```bash
python benchmarks/tinyseek_moe.py --output results/tinyseek/moe.json
```

The published size on CPU in fp32, 4 x 256 tokens, the same weights everywhere: `tinyseek_reference.py` is the plain
loop over separate experts, with its noise on the router in evaluation too. Before anything is timed, its logits have
to equal ours. The block of experts has two further candidates, ours but for the routed experts: a loop over stacked
parameters (`experts_implementation="eager"`), and transformers' grouped product; and in training the shared experts
alone, and the bound: the dense products alone, for tokens that lie at their experts already, as many at each. Training
passes are forward, backward (to the states too) and clearing gradients. Decoding is greedy, a token at a time behind
256 others, ours with a cache that is filled before; the reference has none and computes the sequence anew. All
candidates of a table run in turn, round after round; a ratio is the median over the rounds of the first candidate's
time / a candidate's time within a round. Nothing else should run on the machine.
"""

import copy
import math
from functools import partial

import torch
import torch.nn.functional as F
from timing import compare, prepare, print_table, setting
from tinyseek_options import make_parser, published_config
from tinyseek_reference import check_equal, make_pair
from torch import nn
from transformers import DynamicCache
from transformers.integrations.moe import grouped_mm_experts_forward

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.thinking.cache_argument import CACHE


REFERENCE, OURS = "published loop over experts", "ours"
EAGER, STOCK = "loop over stacked experts", "transformers' grouped experts"
SHARED = "ours, shared experts alone"  # products that both sides need
DENSE = "bound: dense products alone"


def moe_candidates(reference, model):
    """The blocks of experts by name, each with parameters of its own."""
    ours = model.model.layers[0].mlp
    eager, stock = copy.deepcopy(ours), copy.deepcopy(ours)
    eager.experts.config._experts_implementation = "eager"
    stock.experts.forward = partial(grouped_mm_experts_forward, stock.experts)
    return {REFERENCE: reference.synonymous_layer.moe_ffn, OURS: ours, EAGER: eager, STOCK: stock}


@torch.no_grad()
def check_moe(modules, states):
    """Raises a `RuntimeError` unless all blocks give the same, without the reference's noise."""
    reference = modules[REFERENCE]
    reference.noise = False
    expected = reference(states)[0]
    reference.noise = True
    for name, module in modules.items():
        if name == REFERENCE:
            continue
        # In fp32 rounding may give a token another last expert
        differs = (module(states)[0] - expected).abs().amax(-1) > 1e-4
        if differs.double().mean() > 0.01:
            raise RuntimeError(f"The experts of {name!r} give {int(differs.sum())} tokens other outputs.")


class DenseProducts(nn.Module):
    """The products that any version needs, without choosing, sorting, gathering and adding up."""

    def __init__(self, ours, states):
        super().__init__()
        parts = copy.deepcopy((ours.gate, ours.experts, ours.shared_experts))
        self.gate, self.experts, self.shared_experts = parts
        rows = math.ceil(states[..., 0].numel() * self.gate.top_k / self.experts.num_experts)
        self.states = nn.Parameter(states.clone())
        self.placed = nn.Parameter(torch.randn(self.experts.num_experts, rows, states.shape[-1]))  # [E, c, H]
        self.gradients = torch.randn_like(states), torch.randn_like(self.placed)

    def train_once(self):
        self.zero_grad(set_to_none=True)
        experts = self.experts
        with torch.no_grad():
            for weight in (self.gate.weight, self.gate.noise_weight):
                F.linear(self.states, weight)
        inner = torch.baddbmm(experts.up_proj_bias[:, None], self.placed, experts.up_proj.mT)
        routed = torch.baddbmm(experts.down_proj_bias[:, None], experts.act_fn(inner), experts.down_proj.mT)
        torch.autograd.backward((self.shared_experts(self.states), routed), self.gradients)


def train_moe(name, module, states):
    """With a gradient of the states, as inside a model."""
    module.zero_grad(set_to_none=True)
    states = states.detach().requires_grad_()
    if name == SHARED:
        output, balance = module(states), 0.0
    else:
        output, balance = module(states) if name == REFERENCE else module(states, with_balance=True)
    (output.square().mean() + 0.01 * balance).backward()


def measure_moe(modules, states, rounds):
    """Forward, training pass, and the forward of one token."""

    @torch.no_grad()
    def forward(module, inputs):
        module(inputs)

    rows, length, _ = states.shape
    tables = {}
    for title, inputs in ((f"forward, {rows} x {length} tokens", states), ("forward, one token", states[:1, :1])):
        tables[title] = compare({name: partial(forward, module, inputs) for name, module in modules.items()}, rounds)
    trained = {**modules, SHARED: copy.deepcopy(modules[OURS].shared_experts)}
    for module in trained.values():
        module.train()
    candidates = {name: partial(train_moe, name, module, states) for name, module in trained.items()}
    candidates[DENSE] = DenseProducts(modules[OURS], states).train_once
    tables[f"forward and backward, {rows} x {length} tokens"] = compare(candidates, rounds)
    for module in modules.values():
        module.eval().zero_grad(set_to_none=True)
    return tables


class Decoding:
    """Greedy decoding of a few tokens behind a prompt."""

    def __init__(self, reference, model, ids, new_tokens):
        self.reference, self.model, self.ids, self.new_tokens = reference, model, ids, new_tokens
        self.cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids[:, :-1], **{CACHE: self.cache}, use_cache=True)

    @torch.no_grad()
    def ours(self):
        """Behind the cache of the prompt, which is as before at the end."""
        token, tokens = self.ids[:, -1:], []
        for _ in range(self.new_tokens):
            token = self.model(token, **{CACHE: self.cache}, use_cache=True).logits[:, -1:].argmax(-1)
            tokens.append(token)
        self.cache.crop(-self.new_tokens)
        return torch.cat(tokens, dim=1)

    @torch.no_grad()
    def published(self):
        """The whole sequence for each token."""
        ids = self.ids
        for _ in range(self.new_tokens):
            ids = torch.cat([ids, self.reference(ids)[0][:, -1:].argmax(-1)], dim=1)
        return ids[:, self.ids.shape[1] :]


def measure_model(reference, model, ids, args):
    """Forward, training pass, and decoding of a token."""

    @torch.no_grad()
    def forward(module, **kwargs):
        module(ids, **kwargs)

    def train(module, loss):
        module.zero_grad(set_to_none=True)
        loss().backward()

    shape = f"{ids.shape[0]} x {ids.shape[1]} tokens"
    candidates = {REFERENCE: partial(forward, reference), OURS: partial(forward, model, use_cache=False)}
    tables = {f"forward, {shape}": compare(candidates, args.rounds)}
    decoding = Decoding(reference, model, ids[:1], args.new_tokens)
    table = compare({REFERENCE: decoding.published, OURS: decoding.ours}, args.rounds)
    for row in table.values():
        row["seconds"] /= args.new_tokens
    tables[f"decoding, for one token behind {ids.shape[1]}"] = table
    reference.train()
    model.train()
    candidates = {
        REFERENCE: partial(train, reference, lambda: reference.loss(ids)),
        OURS: partial(train, model, lambda: model(ids, labels=ids, use_cache=False).loss),
    }
    tables[f"forward and backward, {shape}"] = compare(candidates, args.rounds)
    return tables


def main(argv=None):
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument("--batch_size", type=int, default=4, help="rows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--new_tokens", type=int, default=8, help="decoded tokens (default: %(default)s)")
    args = parser.parse_args(argv)
    prepare(args)
    reference, model = make_pair(published_config(args))
    ids = torch.randint(1, args.vocab_size, (args.batch_size, args.length))
    states = torch.randn(args.batch_size, args.length, args.hidden_size)
    difference = check_equal(reference, model, ids)
    modules = moe_candidates(reference, model)
    check_moe(modules, states)
    results = {
        "setting": setting(args, "tinyseek_moe", argv),
        "largest_logit_difference": difference,
        "experts": measure_moe(modules, states, args.rounds),
        "model": measure_model(reference, model, ids, args),
    }
    for part in ("experts", "model"):
        for title, rows in results[part].items():
            print_table(f"{part}: {title}", rows)
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
