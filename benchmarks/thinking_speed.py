"""
Speed of thinking models against their plain base, and against an emulation of the published loop, in one process.

```bash
python benchmarks/thinking_speed.py --output results/thinking_speed.json
```

A random Qwen2 (hidden 512, 8 layers, vocabulary 32,000) on CPU in fp32, batch 8, 64 new tokens. All candidates of a
table run in turn, round after round; a ratio is the median over the rounds of candidate time / plain time within a
round. Nothing else should run on the machine. About 15 minutes on two cores; `--only presets`, all ways of thinking
with 32 new tokens, about 6. With `--only` the other tables of the output file stay.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from thinking_presets import PRESETS, START, preset_candidates, preset_model, thinking_share
from tokenizers import Tokenizer, decoders, models
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from hf_evidenceflow import HRPOConfig, HRPOTrainer, ThinkingQwen2Config, ThinkingQwen2ForCausalLM
from hf_evidenceflow.models.thinking import thinking_sources
from hf_evidenceflow.models.thinking.cache_argument import CACHE


SIZE = {
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
BATCH, PROMPT, NEW = 8, 32, 64
NEW_OF_PRESETS = 32


def make_tokenizer():
    """32,000 tokens: two special ones, single characters, the marker in two halves, and made-up words."""
    tokens = ["<pad>", "</s>", "##", *"#0123456789abcdefghijklmnopqrstuvwxyz", "Ġ"]
    tokens += [f"Ġw{index}" for index in range(SIZE["vocab_size"] - len(tokens))]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", padding_side="left")


def make_models(mode, head_scale=1.0):
    """A plain model and the thinking model with the same weights; `head_scale` sharpens the distribution."""
    torch.manual_seed(0)
    plain = Qwen2ForCausalLM(Qwen2Config(**SIZE))
    with torch.no_grad():
        plain.lm_head.weight *= head_scale
    thinking = ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**SIZE, thinking_mode=mode))
    thinking.load_state_dict(plain.state_dict(), strict=False)
    return plain.eval(), thinking.eval()


def in_turn(candidates: dict, rounds: int) -> dict:
    """
    Runs the candidates in turn; returns median seconds and the ratio to the first one, with its range over the rounds.
    """
    names = list(candidates)
    seconds = {name: [] for name in names}
    for candidate in candidates.values():
        candidate()
    for index in range(rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    ratios = {name: [a / b for a, b in zip(seconds[name], seconds[names[0]])] for name in names}
    return {
        name: {
            "seconds": round(statistics.median(seconds[name]), 4),
            "ratio": round(statistics.median(ratios[name]), 3),
            "ratio_min": round(min(ratios[name]), 3),
            "ratio_max": round(max(ratios[name]), 3),
        }
        for name in names
    }


def prompt_ids():
    ids = torch.randint(100, SIZE["vocab_size"], (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = START
    return ids


def generate(model, tokenizer, new=NEW, **kwargs):
    torch.manual_seed(0)
    ids = prompt_ids()
    return model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        tokenizer=tokenizer,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=True,
        top_k=0,  # all tokens: `generate` keeps 50 by default
        **kwargs,
    )


@torch.no_grad()
def published_loop(model, tokenizer):
    """
    The published generation loop, emulated: the whole completion is decoded each step to look for the marker, and the
    state is a product over the whole vocabulary, whatever the distribution.
    """
    torch.manual_seed(0)
    base, ids = model.model, prompt_ids()
    cache, embeds = DynamicCache(), base.embed_tokens(ids)
    completion = ids[:, :0]
    thinking = torch.ones(BATCH, dtype=torch.bool)
    for _ in range(NEW):
        hidden = base(inputs_embeds=embeds, **{CACHE: cache}, use_cache=True).last_hidden_state[:, -1]
        scores = model.lm_head(hidden).float()
        scores[:, SIZE["eos_token_id"]] = -torch.inf
        probs = scores.softmax(-1)
        token = torch.multinomial(probs, 1)
        completion = torch.cat([completion, token], dim=1)
        texts = tokenizer.batch_decode(completion)
        thinking = torch.tensor(["####" not in text for text in texts])
        state = torch.einsum("bv,vh->bh", probs, base.embed_tokens.weight) / probs.norm(dim=-1, keepdim=True)
        embeds, _, _ = base.fuse(base.embed_tokens(token), state[:, None], thinking[:, None])


def mean_entropy(model, tokenizer):
    """Mean entropy in nats of the distributions that a rollout drew from."""
    output = generate(model, tokenizer, return_dict_in_generate=True, output_scores=True)
    logps = torch.stack(output.scores).log_softmax(-1)
    return -(logps.exp() * logps.clamp(min=-1e4)).sum(-1).mean().item()


def measure_generation(tokenizer, rounds):
    plain, projection = make_models("projection")
    candidates = {
        "plain": partial(generate, plain, tokenizer),
        "projection": partial(generate, projection, tokenizer),
        "projection, recorded": partial(generate, projection, tokenizer, return_dict_in_generate=True),
    }
    results = {"projection": in_turn(candidates, rounds)}
    for name, scale in (("embedding, flat", 1.0), ("embedding, peaked", 13.5)):
        plain, embedding = make_models("embedding", scale)
        candidates = {
            "plain": partial(generate, plain, tokenizer),
            "embedding": partial(generate, embedding, tokenizer),
            "published loop, emulated": partial(published_loop, embedding, tokenizer),
        }
        results[name] = in_turn(candidates, rounds)
        results[name]["mean entropy (nats)"] = round(mean_entropy(embedding, tokenizer), 3)
        results[name]["share of states from likely tokens"] = round(share_cut(embedding, tokenizer), 3)
    return results


def share_cut(model, tokenizer):
    """Share of the states that are computed from the likely tokens only."""
    tails = []
    original = thinking_sources.sparse_soft_state

    def counted(probs, embedding, mean):
        tails.append(torch.where(probs < thinking_sources.TOKEN_CUT, probs, 0.0).sum(-1))
        return original(probs, embedding, mean)

    thinking_sources.sparse_soft_state = counted
    try:
        generate(model, tokenizer)
    finally:
        thinking_sources.sparse_soft_state = original
    return (torch.cat(tails) <= thinking_sources.MAX_TAIL).float().mean().item()


def measure_presets(tokenizer, rounds):
    """Each way of thinking with a peaked distribution; all of them sample, and draw what they draw."""
    plain, _ = make_models("none", 13.5)
    model = preset_model(plain, SIZE)
    call = partial(generate, tokenizer=tokenizer, new=NEW_OF_PRESETS)
    candidates = {"plain": partial(call, plain), **preset_candidates(model, NEW_OF_PRESETS, call)}
    results = in_turn(candidates, rounds)
    for name, (_, cost) in PRESETS.items():
        share = thinking_share(model, name, NEW_OF_PRESETS, call)
        results[name] |= {"thinking_share": round(share, 3), "pays_for": cost}
    return {"all": results}


def measure_training(rounds):
    """Forward and backward over a prompt of 32 and a completion of 64 tokens, all of it thinking."""
    results = {}
    for mode in ("projection", "embedding"):
        plain, thinking = make_models(mode)
        ids = torch.randint(50, SIZE["vocab_size"], (BATCH, PROMPT + NEW), generator=torch.Generator().manual_seed(2))
        states = torch.randn(BATCH, NEW, SIZE["hidden_size"], generator=torch.Generator().manual_seed(3))
        inputs = {"thinking_states": states, "thinking_mask": torch.ones(BATCH, NEW, dtype=torch.bool)}

        def step(model, ids=ids, **kwargs):
            model.zero_grad()
            model(ids, labels=ids, use_cache=False, **kwargs).loss.backward()

        results[mode] = in_turn({"plain": partial(step, plain), mode: partial(step, thinking, **inputs)}, rounds)
    return results


def measure_steps(tokenizer, rounds):
    """One optimizer step of TRL's GRPO and of HRPO: rollout of 8 x 64 tokens, rewards, loss, backward, AdamW."""
    results = {}
    for mode in ("projection", "embedding"):
        plain, thinking = make_models(mode)
        dataset = Dataset.from_dict({"prompt": [" ".join(["w5"] * 4)] * 8})
        candidates = {}
        for name, model, trainer_class, config_class in (
            ("GRPO", plain, GRPOTrainer, GRPOConfig),
            ("HRPO", thinking, HRPOTrainer, HRPOConfig),
        ):
            config = config_class(
                output_dir=tempfile.mkdtemp(),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=BATCH,
                num_generations=BATCH,
                max_completion_length=NEW,
                generation_kwargs={"min_new_tokens": NEW},
                temperature=1.0,
                beta=0.0,
                report_to="none",
                save_strategy="no",
            )
            trainer = trainer_class(
                model,
                lambda completions, **kwargs: [float(index % 2) for index in range(len(completions))],
                args=config,
                train_dataset=dataset,
                processing_class=tokenizer,
            )
            trainer.create_optimizer()
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.train()
            candidates[name] = partial(optimizer_step, trainer, next(iter(trainer.get_train_dataloader())))
        results[mode] = in_turn(candidates, rounds)
    return results


def optimizer_step(trainer, batch):
    torch.manual_seed(0)
    trainer._step = 0  # the batch is generated anew
    trainer.training_step(trainer.model, batch, None)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def print_table(title, rows):
    print(f"\n{title}")
    for name, row in rows.items():
        if isinstance(row, dict):
            print(
                f"  {name:28s} {row['seconds']:8.3f} s   {row['ratio']:.3f}x "
                f"({row['ratio_min']:.3f}-{row['ratio_max']:.3f})"
            )
        else:
            print(f"  {name}: {row}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument(
        "--only", choices=["presets", "generation", "forward and backward", "optimizer step"], help="one kind of table"
    )
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each table (default: %(default)s)")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = make_tokenizer()

    results = {
        "setting": {
            **SIZE,
            "batch": BATCH,
            "prompt": PROMPT,
            "new_tokens": NEW,
            "rounds": args.rounds,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        }
    }
    if args.only and args.output and Path(args.output).exists():
        before = json.loads(Path(args.output).read_text(encoding="utf-8"))
        results = {**before, args.only: None, f"setting of {args.only}": results["setting"]}
    measures = {
        "presets": lambda: measure_presets(tokenizer, args.rounds),
        "generation": lambda: measure_generation(tokenizer, args.rounds),
        "forward and backward": lambda: measure_training(args.rounds),
        "optimizer step": lambda: measure_steps(tokenizer, args.rounds),
    }
    for kind, measure in measures.items():
        if args.only in (None, kind):
            results[kind] = measure()
            for name, rows in results[kind].items():
                print_table(f"{kind}: {name}", rows)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
