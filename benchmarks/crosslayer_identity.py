"""
A pretrained Llama as the start of each cross-layer variant: is it still the same model, and can it learn from there?

```bash
python benchmarks/crosslayer_identity.py --model_name_or_path HuggingFaceTB/SmolLM-135M \
    --output results/crosslayer/identity.json
```

For each variant, loaded from the checkpoint with `identity_init=True`: the difference of its logits from the plain
model's on a text (the largest one, and the norm relative to the logits'), perplexity before and after, as a control
that with `identity_init=False`, and the gradient of its own parameters, alone and relative to what it is without
identity (a gate is only there with identity; the parameters behind a closed gate get a gradient after the first step).
Of parameters with an entry for each term those of the earlier terms and of the own one are told apart. Then `--steps`
AdamW steps of these parameters alone, without decay, on the same text: how far they move, what gradient they have
then, and the loss.

`saturated`: the same for the softmax variants with a logit of 20 above the others for the own term in the place of
identity init's: closer to the plain model, but its gradient is that much smaller.

The text is `--text_file`, by default this project's README, in `--rows` rows of `--length` tokens. CPU, fp32.
"""

import argparse
import math
from pathlib import Path

import torch
from timing import make_parser, prepare, setting
from transformers import AutoTokenizer, LlamaForCausalLM

from hf_evidenceflow import CrossLayerLlamaForCausalLM, extra_parameters
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.models.crosslayer.configuration_crosslayer import VARIANTS
from hf_evidenceflow.report.tables import markdown_table


SATURATED_LOGIT = 20.0
COLUMNS = (
    "variant",
    "way",
    "largest logit difference",
    "relative",
    "perplexity before",
    "after",
    "without identity",
    "parameter",
    "gradient",
    "relative to no identity",
    "gradient after steps",
    "moved at most",
    "loss before",
    "after",
)


def load_rows(args: argparse.Namespace) -> torch.Tensor:
    """Token ids `(rows, length)` of the beginning of the text."""
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    ids = tokenizer(args.text_file.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    rows = min(args.rows, len(ids) // args.length)
    if not rows:
        raise ValueError(f"`{args.text_file}` has {len(ids)} tokens: lower `--length` ({args.length}).")
    return ids[: rows * args.length].view(rows, args.length)


def make_variant(args, name, identity):
    model = CrossLayerLlamaForCausalLM.from_pretrained(
        args.model_name_or_path, variant=name, identity_init=identity, dtype=torch.float32
    )
    model.requires_grad_(False)
    for parameter in extra_parameters(model).values():
        parameter.requires_grad_(True)
    return model


@torch.no_grad()
def logits_and_loss(model, ids):
    output = model(ids, labels=ids, use_cache=False)
    return output.logits, output.loss.item()


def gradients(model, ids):
    """Gradient of each of the variant's parameters, by name."""
    model.zero_grad(set_to_none=True)
    model(ids, labels=ids, use_cache=False).loss.backward()
    # Where a parameter has no part in the output there is none
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in extra_parameters(model).items()
    }


def split_terms(tensors):
    """Entries of earlier terms and of the own one apart, where a parameter has them; those of the own one are last."""
    parts = {}
    for name, tensor in tensors.items():
        if tensor.dim() and not name.endswith("depth_query") and ".hyper_" not in name:
            parts[f"{name} (own)"] = tensor[-1:]
            if len(tensor) > 1:
                parts[f"{name} (earlier)"] = tensor[:-1]
        else:
            parts[name] = tensor
    return parts


def norms(tensors):
    """Norm of each tensor, and over the layers of each kind of parameter, by the kind's name."""
    each = {name: tensor.norm().item() for name, tensor in split_terms(tensors).items()}
    kinds = {}
    for name, norm in each.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(norm)
    return {kind: math.hypot(*values) for kind, values in kinds.items()} | each


def relative(values, references):
    """`values` by `references`; `None` where a reference is missing or 0."""
    return {name: value / references[name] if references.get(name) else None for name, value in values.items()}


def train(model, ids, steps, learning_rate):
    """AdamW steps of the variant's parameters. Returns how far each one moved."""
    parameters = extra_parameters(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    return {name: parameter.detach() - start[name] for name, parameter in parameters.items()}


def saturate(model):
    """The own term's logit far above the others'."""
    with torch.no_grad():
        for parameter in extra_parameters(model).values():
            parameter.fill_(0.0)
            parameter[-1] = SATURATED_LOGIT


def measure(args, model, ids, plain_logits, plain_loss, unbiased_norms, unbiased_loss):
    """All figures of a model that starts near the plain one."""
    logits, loss = logits_and_loss(model, ids)
    difference = logits - plain_logits
    norms_before = norms(gradients(model, ids))
    moved = train(model, ids, args.steps, args.learning_rate)
    norms_after = norms(gradients(model, ids))
    return {
        "way": "gate" if model.config.cross_layer_gate else "own parameters",
        "largest_logit_difference": difference.abs().max().item(),
        "relative_logit_difference": (difference.norm() / plain_logits.norm()).item(),
        "perplexity_before": math.exp(plain_loss),
        "perplexity": math.exp(loss),
        "perplexity_without_identity": math.exp(unbiased_loss),
        "gradient_norms": norms_before,
        "gradient_relative_to_no_identity": relative(norms_before, unbiased_norms),
        "gradient_norms_after_steps": norms_after,
        "moved_norms": norms(moved),
        "moved_at_most": {name: change.abs().max().item() for name, change in split_terms(moved).items()},
        "loss_before": loss,
        "loss_after": logits_and_loss(model, ids)[1],
    }


def table_rows(rows):
    """A row for each variant and kind of parameter."""
    for variant, row in rows.items():
        kinds = [name for name in row["gradient_norms"] if "." not in name]
        for kind in kinds:
            ratio = row["gradient_relative_to_no_identity"][kind]
            moved = max(value for name, value in row["moved_at_most"].items() if name.endswith(f".{kind}"))
            yield (
                variant,
                row["way"],
                f"{row['largest_logit_difference']:.2e}",
                f"{row['relative_logit_difference']:.2e}",
                f"{row['perplexity_before']:.4f}",
                f"{row['perplexity']:.4f}",
                f"{row['perplexity_without_identity']:.4g}",
                kind,
                f"{row['gradient_norms'][kind]:.2e}",
                "-" if ratio is None else f"{ratio:.2e}",
                f"{row['gradient_norms_after_steps'][kind]:.2e}",
                f"{moved:.2e}",
                f"{row['loss_before']:.5f}",
                f"{row['loss_after']:.5f}",
            )


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--model_name_or_path", required=True, help="a plain Llama with its tokenizer")
    parser.add_argument("--text_file", type=Path, default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--rows", type=int, default=4, help="rows at most (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    names = [name for name in VARIANTS if name != "base"]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    args = parser.parse_args(argv)
    prepare(args)
    ids = load_rows(args)
    plain = LlamaForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    plain_logits, plain_loss = logits_and_loss(plain, ids)
    del plain
    results = {
        "setting": setting(args, "crosslayer_identity", argv) | {"tokens": ids.numel()},
        "identity": {},
        "saturated": {},
    }
    for name in args.variants:
        without = make_variant(args, name, identity=False)
        has_parameters = bool(extra_parameters(without))
        unbiased_norms = norms(gradients(without, ids)) if has_parameters else {}
        unbiased_loss = logits_and_loss(without, ids)[1]
        del without
        starts = {"identity": make_variant(args, name, identity=True)}
        if starts["identity"].config.cross_layer_combination == "softmax":
            starts["saturated"] = make_variant(args, name, identity=True)
            saturate(starts["saturated"])
        for start, model in starts.items():
            results[start][name] = measure(args, model, ids, plain_logits, plain_loss, unbiased_norms, unbiased_loss)
    for start in ("identity", "saturated"):
        if results[start]:
            table = markdown_table(COLUMNS, table_rows(results[start]), align="l")
            print(f"\n{start}\n\n{table}", flush=True)
    if args.output:
        atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
