"""
Decoding a token with latent attention in three ways, in one process: what the small cache costs or saves in time.

```bash
python benchmarks/tinyseek_attention.py --output results/tinyseek/attention.json
```

One attention layer of the published size on CPU in fp32, one row, one new token behind 512, 2,048 and 4,096 others:

- expanded cache: keys and values of all heads are kept, as other models do, and attended to by plain products, or by
  SDPA, which has no fast CPU kernel for values of another size than the keys;
- latent cache, expanded each time: the latent is kept, and keys and values are made from it at each step;
- latent cache, absorbed: ours, the up-projections applied to the query and to the output instead.

All have the same weights and projections, append to a `DynamicCache`, and have to give the same output, or the script
fails. Appending copies that cache, so it is timed alone as well. The latents in the cache are random numbers. All run
in turn, round after round; a ratio is the median over the rounds of the expanded cache's time / a candidate's time
within a round. Nothing else should run on the machine.
"""

from functools import partial

import torch
from timing import compare, prepare, print_table, setting
from tinyseek_options import make_parser, published_config
from transformers import DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)

from hf_evidenceflow import cost_report
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.tinyseek.convert_tinyseek import convert_original_config
from hf_evidenceflow.models.tinyseek.latent_attention import expand_latent
from hf_evidenceflow.models.tinyseek.modeling_tinyseek import TinySeekAttention


EXPANDED_CACHE, SDPA = "expanded cache", "expanded cache, SDPA"
EXPANDED, ABSORBED = "latent cache, expanded each time", "latent cache, absorbed"
ONLY_APPENDING = {EXPANDED_CACHE: "expanded cache, only appending", ABSORBED: "latent cache, only appending"}


class ExpandedAttention(TinySeekAttention):
    """Expands the whole cache each time."""

    def _absorbs(self, new, cached, mask):
        return False


class ExpandedCacheAttention(TinySeekAttention):
    """Keeps keys `(B, A, S, N + R)` and values `(B, A, S, D)` of all heads; for one new token, without a mask."""

    def forward(self, hidden_states, position_embeddings, past_key_values):
        latent_query = self.q_a_proj(hidden_states)
        query = self.q_b_proj(latent_query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        latent, rotary_key = self.kv_a_proj_with_mqa(hidden_states)[:, None].split(
            [self.latent_size, self.rope_size], dim=-1
        )
        rotary_query, rotary_key = apply_rotary_pos_emb_interleave(
            self.q_rope_proj(latent_query)[:, None], rotary_key, *position_embeddings
        )
        key, value = past_key_values.update(*self.expanded(latent, rotary_key), 0)
        query = torch.cat([query, rotary_query.expand(-1, self.num_heads, -1, -1)], dim=-1)
        output = self.attend(query, key, value)
        return self.o_proj(output.transpose(1, 2).flatten(2)), None

    def attend(self, query, key, value):
        return (query @ key.mT * self.scaling).softmax(-1) @ value

    def expanded(self, latent, rotary_key):
        """Keys and values of all heads."""
        key, value = expand_latent(latent, self.kv_b_proj, self.num_heads, self.nope_size)
        return torch.cat([key, rotary_key.expand(-1, self.num_heads, -1, -1)], dim=-1), value


class SDPAExpandedCacheAttention(ExpandedCacheAttention):
    """The same with SDPA."""

    def attend(self, query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scaling)


@torch.no_grad()
def make_steps(config, context, seed=0):
    """Decoding steps, and appending alone, by name; each leaves its cache as it was."""
    torch.manual_seed(seed)
    latent = torch.randn(1, 1, context, config.kv_lora_rank)
    rotary_key = torch.randn(1, 1, context, config.qk_rope_head_dim)
    states = torch.randn(1, 1, config.hidden_size)
    positions = DeepseekV3RotaryEmbedding(config)(states, torch.tensor([[context]]))
    classes = {
        EXPANDED_CACHE: ExpandedCacheAttention,
        SDPA: SDPAExpandedCacheAttention,
        EXPANDED: ExpandedAttention,
        ABSORBED: TinySeekAttention,
    }
    layers = {name: layer_class(config).eval() for name, layer_class in classes.items()}
    for layer in layers.values():
        layer.load_state_dict(layers[EXPANDED_CACHE].state_dict())

    @torch.no_grad()
    def step(layer, cache):
        output, _ = layer(states, positions, past_key_values=cache)
        cache.crop(-1)
        return output

    def append(cache, key, value):
        cache.update(key, value, 0)
        cache.crop(-1)

    steps, appends = {}, {}
    for name, layer in layers.items():
        cache = DynamicCache()
        key, value = layer.expanded(latent, rotary_key) if name in (EXPANDED_CACHE, SDPA) else (latent, rotary_key)
        cache.update(key, value, 0)
        steps[name] = partial(step, layer, cache)
        if name in ONLY_APPENDING:
            appends[ONLY_APPENDING[name]] = partial(append, cache, key[:, :, :1], value[:, :, :1])
    return steps, appends


def check_equal(steps):
    """Raises a `RuntimeError` unless all steps give the same; returns the largest difference."""
    expected = steps[EXPANDED_CACHE]()
    difference = max((step() - expected).abs().max().item() for step in steps.values())
    if not difference < 1e-4:
        raise RuntimeError(f"The outputs differ by {difference:.3g}: do not compare their times.")
    return difference


def repeated(step, times):
    for _ in range(times):
        step()


def main(argv=None):
    parser = make_parser(__doc__, rounds=21)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=20, help="steps of a round (default: %(default)s)")
    args = parser.parse_args(argv)
    prepare(args)
    config = convert_original_config(published_config(args))
    config._attn_implementation = "sdpa"
    report = cost_report(config)
    results = {
        "setting": setting(args, "tinyseek_attention", argv),
        "cache_numbers_per_token": report.cache_numbers_per_token,
        "expanded_cache_numbers_per_token": report.expanded_cache_numbers_per_token,
        "cache_ratio": report.expanded_cache_numbers_per_token / report.cache_numbers_per_token,
        "contexts": {},
    }
    for context in args.contexts:
        steps, appends = make_steps(config, context)
        difference = check_equal(steps)
        candidates = {name: partial(repeated, step, args.repeats) for name, step in (steps | appends).items()}
        rows = compare(candidates, args.rounds)
        for row in rows.values():
            row["seconds"] /= args.repeats
        results["contexts"][str(context)] = rows | {"largest_difference": difference}
        print_table(f"one token behind {context} (outputs differ by {difference:.1e} at most)", rows)
    print(
        f"\nCache, numbers a token over all layers: {report.cache_numbers_per_token}; expanded "
        f"{report.expanded_cache_numbers_per_token}, {results['cache_ratio']:.1f} times as many."
    )
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
