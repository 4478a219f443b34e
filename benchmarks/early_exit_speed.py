"""
Speed of early exit against full depth, in one process: truncated decoding, confidence exit, self-speculation with the
exit head and stock `assistant_early_exit`, on a model trained here with cross-entropy at the exit layer.

```bash
python benchmarks/early_exit_speed.py --output results/early_exit/speed.json
```

A Llama (hidden 256, 16 layers, vocabulary 1,024) learns generated word problems; prompts are held-out questions, the
model writes their solutions greedily, one at a time, on CPU in fp32. All candidates run in turn, round after round; a
ratio is the median over the rounds of candidate tokens per second / full-depth tokens per second within a round.
Nothing else should run on the machine. Self-speculation has to give the very tokens of full depth, or the script
fails. `--supervise false` trains the control: the same model without the term at the exit layer. `--train_steps 0`
trains nothing and makes the layers behind the exit add nothing instead, so that all drafts are right: the bound.
"""

import argparse
import platform
import time
from dataclasses import asdict
from functools import partial

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from hf_evidenceflow import EvidenceFlowConfig, evidence_flow
from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.early_exit import (
    FULL_DEPTH,
    EarlyExitConfig,
    GreedyDecoding,
    SelfSpeculation,
    early_exit,
    exit_sweep,
    in_turn,
)
from hf_evidenceflow.report.run_record import git_revision
from hf_evidenceflow.tasks import build_word_problem_tokenizer, split_word_problems


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_layers", type=int, default=16)
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=4, help="layers of the supervised exit (default: %(default)s)")
    parser.add_argument("--draft_tokens", type=int, default=10)
    parser.add_argument("--supervise", choices=["true", "false"], default="true")
    parser.add_argument("--train_steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.7, 0.9, 0.99])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: seconds in which it had a core")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def make_model(args, tokenizer):
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer, problems):
    """Token ids of question and solution; the number of question tokens."""
    rows = []
    for row in problems:
        question = tokenizer(row["question"] + "\n").input_ids
        rows.append((torch.tensor(question + tokenizer(row["answer"] + tokenizer.eos_token).input_ids), len(question)))
    return rows


def collate(rows):
    """Right-padded; only the solutions are to be learnt."""
    ids = pad_sequence([ids for ids, _ in rows], batch_first=True)
    mask = pad_sequence([torch.ones_like(ids) for ids, _ in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, -100)
    for label, (_, length) in zip(labels, rows):
        label[:length] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def let_through(model, depth):
    """The layers behind the exit do all their work and add nothing to the states; no text ends."""
    for layer in model.model.layers[depth:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.mul_(100)  # sure of each token, so that no draft ends early
    model.generation_config.eos_token_id = None
    return model.eval()


def train(model, rows, args):
    """A plain loop; the supervision comes from the `with` block."""
    if not args.train_steps:
        return let_through(model, args.depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.train_steps // 20 + 1, args.train_steps)
    weight = 1.0 if args.supervise == "true" else 0.0
    supervision = EvidenceFlowConfig(
        objective="cross_entropy", layers=[args.depth - 1], weight=weight, token_fraction=1.0, log_every=0
    )
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    with evidence_flow(model, supervision):
        for step in range(args.train_steps):
            chosen = torch.randint(len(rows), (args.batch_size,), generator=generator).tolist()
            loss = model(**collate([rows[index] for index in chosen])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0 or step == args.train_steps - 1:
                print(f"step {step + 1}/{args.train_steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def measure(model, decoding, args):
    """Speeds by candidate, and what the candidates did."""
    speculation = SelfSpeculation(model, args.depth, args.draft_tokens)
    full = decoding.outputs()
    if not all(map(torch.equal, full, decoding.outputs(custom_generate=speculation))):
        raise RuntimeError("Self-speculation gave other tokens than full depth, so its speed means nothing.")
    stock_same = all(map(torch.equal, full, decoding.outputs(assistant_early_exit=args.depth)))
    facts = {
        "new_tokens": sum(map(len, full)),
        "self_speculation": {
            "accept_rate": speculation.accept_rate,
            "tokens_per_verification": sum(len(tokens) - 1 for tokens in full) / speculation.rounds,
            "identical": True,
        },
        "stock_assistant_early_exit": {"identical": stock_same},
        "confidence": {},
    }
    candidates = {
        FULL_DEPTH: decoding.full,
        f"self-speculation, depth {args.depth}": partial(decoding.speculative, speculation),
        f"stock assistant_early_exit={args.depth}": partial(decoding.stock, args.depth),
        f"stock, drafts of {args.draft_tokens}": partial(decoding.stock, args.depth, args.draft_tokens),
        f"truncated to {args.depth}": partial(decoding.truncated, args.depth),
    }
    for threshold in args.thresholds:
        config = EarlyExitConfig(threshold=threshold, layers=[args.depth - 1, model.config.num_hidden_layers - 1])
        candidates[f"confidence {threshold}"] = partial(decoding.adaptive, config)
        depths = []
        with early_exit(model, config) as exits:
            same = []
            for prompt, right in zip(decoding.prompts, full):
                one = GreedyDecoding(model, [prompt], decoding.max_new_tokens).outputs()[0]
                same.append(torch.equal(one, right))
                depths += exits.depths.flatten().tolist()
        facts["confidence"][str(threshold)] = {
            "average_depth": sum(depths) / len(depths),
            "identical_outputs": sum(same) / len(same),
        }
    clock = time.process_time if args.clock == "cpu" else None
    return facts | {"speed": {name: asdict(speed) for name, speed in in_turn(candidates, args.rounds, clock).items()}}


def main(argv=None):
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    tokenizer = build_word_problem_tokenizer()
    problems = split_word_problems(train=20_000, test=200, seed=args.seed, steps=4, max_number=9)
    rows = {name: encode(tokenizer, part) for name, part in problems.items()}
    start = time.perf_counter()
    model = train(make_model(args, tokenizer), rows["train"], args)
    train_seconds = time.perf_counter() - start

    sweep = exit_sweep(model, [collate(rows["test"][first : first + 50]) for first in range(0, 200, 50)])
    for row in sweep:
        print(
            f"depth {row.depth:4.0f}   perplexity {row.perplexity:8.3f}   accuracy {row.accuracy:.3f}   "
            f"agreement {row.agreement:.3f}"
        )
    prompts = [ids[None, :length] for ids, length in rows["test"][: args.prompts]]
    results = measure(model, GreedyDecoding(model, prompts, args.max_new_tokens), args)
    for name, speed in results["speed"].items():
        print(
            f"{name:32s} {speed['tokens_per_second']:8.1f} tokens/s   {speed['ratio']:.3f}x "
            f"({speed['ratio_min']:.3f}-{speed['ratio_max']:.3f})"
        )
    print({name: value for name, value in results.items() if name != "speed"})
    if args.output:
        setting = vars(args) | {
            "parameters": model.num_parameters(),
            "train_seconds": round(train_seconds, 1),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "git": git_revision(),
        }
        atomic_write_json(args.output, {"setting": setting, "exit_sweep": [asdict(row) for row in sweep], **results})


if __name__ == "__main__":
    main()
