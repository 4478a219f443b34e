"""
Faster generation: speculative decoding, kinds of KV cache, and PagedAttention's block table.

```bash
python recipes/course/fast_inference/run.py --config recipes/configs/course/fast_inference.yaml
```

Offline, in 100 seconds on one CPU core, it trains a target model and a small draft model on stories of a small world,
and then asks:

1. Speculative decoding, greedy: does it give the same tokens, how many drafts are kept, and is it faster? Drafts come
   from a draft model, from the prompt itself (n-gram look-up), and from the target's own first layers, which are
   supervised by `EvidenceFlowCallback` to be readable.
2. Speculative sampling: are the samples distributed as the target's own? By a test on the total variation distance,
   with samples of the draft model as the control that must fail.
3. KV caches: what they cost in memory and time, and whether they change the tokens.
4. Paged cache: a block table with prefix sharing and copy-on-write, beside stock `generate` and `generate_batch`.

With a target and a draft of your own that have the same tokenizer:

```bash
python recipes/course/fast_inference/run.py --model_name_or_path Qwen/Qwen2.5-1.5B \
    --draft_name_or_path Qwen/Qwen2.5-0.5B --early_exit_depth 0 --text_file prompts.txt --output_dir outputs/qwen
```

Outputs, in `output_dir`: `fast_inference.md` (the tables), `fast_inference.png`, `metrics.json`, `run.json`, and the
models (`target`, `draft`).

Sources: Leviathan et al. 2023 (2211.17192) and Chen et al. 2023 (2302.01318), speculative decoding; Saxena 2023,
prompt look-up; Elhoushi et al. 2024 (LayerSkip, 2404.16710), self-speculation; Kwon et al. 2023 (vLLM, 2309.06180),
paged attention.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch

from hf_evidenceflow import EvidenceFlowConfig
from hf_evidenceflow.data.text import split_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.data.tokenizer_loading import load_tokenizer
from hf_evidenceflow.early_exit.self_speculation import SelfSpeculation
from hf_evidenceflow.models.from_scratch import model_from_scratch
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.course.fast_inference.cache_kinds import cache_kinds, decode_with_cache
from hf_evidenceflow.recipes.course.fast_inference.inference_plots import inference_rows, plot_fast_inference
from hf_evidenceflow.recipes.course.fast_inference.report import (
    cache_table,
    sampling_table,
    serving_table,
    speculation_table,
)
from hf_evidenceflow.recipes.course.fast_inference.serving import compare_serving
from hf_evidenceflow.recipes.course.fast_inference.speculation import (
    compare_speculation,
    continuation_probabilities,
    count_continuations,
    fixed_drafts,
)
from hf_evidenceflow.recipes.course.fast_inference.total_variation import total_variation_test
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments, course_documents
from hf_evidenceflow.recipes.course.shared.language_model import pretrain
from hf_evidenceflow.recipes.course.shared.methods_option import chosen_methods
from hf_evidenceflow.recipes.course.shared.recipe import course_run
from hf_evidenceflow.run_folder.exit_codes import run_recipe


HEAD_SIZE = 32
LOOK_UP = "n-grams of the prompt"
STOCK_EXIT, OWN_EXIT = "own first layers (stock)", "own first layers (SelfSpeculation)"
SAMPLING, CACHES, SERVING = "sampled distribution", "KV caches", "serving"


@dataclass
class FastInferenceArguments(CourseArguments):
    """
    Models and sizes; the text and the folder are those of [`CourseArguments`].

    Args:
        model_name_or_path, draft_name_or_path (`str`, *optional*):
            Target and draft model, with one tokenizer; `None`: tiny Llamas, trained here.
        methods (`list[str]`, *optional*):
            What to run, by names or parts of them: `"draft model, 4 tokens"`, `"n-grams of the prompt"`,
            `"own first layers (stock)"`, `"own first layers (SelfSpeculation)"`, `"sampled distribution"`,
            `"KV caches"`, `serving`. If not given, all.
        target_layers, target_size, draft_layers, draft_size (`int`, *optional*, default to `8`, `128`, `1`, `64`):
            Layers and hidden sizes of the models that are trained here.
        train_steps (`int`, *optional*, defaults to `150`):
            Steps of 16 rows of 64 tokens for each of them.
        early_exit_depth (`int`, *optional*, defaults to `2`):
            Layers of the target that draft for it; its state there is supervised in training. 0 leaves this way out.
        draft_counts (`list[int]`, *optional*, defaults to `[2, 4, 8]`):
            Numbers of drafts a pass.
        prompts, prompt_tokens, max_new_tokens (`int`, *optional*, default to `4`, `12` and `48`):
            Prompts of the comparisons, from the end of the text, their longest length, and the tokens generated.
        draws (`int`, *optional*, defaults to `1000`):
            Samples of two tokens in the test of the distribution.
        num_samples (`int`, *optional*, defaults to `4`):
            Samples a prompt with the paged cache.
        block_size, num_blocks (`int`, *optional*, default to `8` and `320`):
            Tokens a block, and blocks.
        rounds (`int`, *optional*, defaults to `2`):
            Rounds of timing.
    """

    may_be_zero: ClassVar[frozenset[str]] = CourseArguments.may_be_zero | {"early_exit_depth"}

    output_dir: str = "outputs/fast_inference"
    model_name_or_path: str | None = None
    draft_name_or_path: str | None = None
    methods: list[str] | None = None
    target_layers: int = 8
    target_size: int = 128
    draft_layers: int = 1
    draft_size: int = 64
    train_steps: int = 150
    early_exit_depth: int = 2
    draft_counts: list[int] | None = None
    prompts: int = 4
    prompt_tokens: int = 12
    max_new_tokens: int = 48
    draws: int = 1000
    num_samples: int = 4
    block_size: int = 8
    num_blocks: int = 320
    rounds: int = 2

    def __post_init__(self):
        super().__post_init__()
        self.draft_counts = self.draft_counts or [2, 4, 8]
        if (self.model_name_or_path is None) != (self.draft_name_or_path is None):
            raise ValueError("`model_name_or_path` and `draft_name_or_path` go together: give both or none.")
        exits = [STOCK_EXIT, OWN_EXIT] if self.early_exit_depth else []
        names = [*self.draft_ways.values(), LOOK_UP, *exits, SAMPLING, CACHES, SERVING]
        self.methods = chosen_methods(names, self.methods)
        if self.prompt_tokens < 2:
            raise ValueError(f"`prompt_tokens` must be at least 2, got {self.prompt_tokens}.")
        longest = 2 * self.block_size + self.prompt_tokens + self.max_new_tokens
        if SERVING in self.methods and self.num_blocks * self.block_size < longest + self.block_size:
            raise ValueError(
                f"`num_blocks` ({self.num_blocks}) of `block_size` {self.block_size} do not hold a sample of "
                f"{longest} tokens. Make one of them larger."
            )
        if self.model_name_or_path is None:
            self._check_sizes()

    def _check_sizes(self):
        for name in ("target_size", "draft_size"):
            if getattr(self, name) % HEAD_SIZE:
                raise ValueError(f"`{name}` must be a multiple of {HEAD_SIZE}, got {getattr(self, name)}.")
        if self.early_exit_depth >= self.target_layers:
            raise ValueError(
                f"`early_exit_depth` must be below `target_layers` ({self.target_layers}), got "
                f"{self.early_exit_depth}."
            )

    @property
    def draft_ways(self) -> dict[int, str]:
        """Names of the ways with a draft model, by their number of drafts."""
        return {count: f"draft model, {count} tokens" for count in self.draft_counts}


def train_llama(args, name: str, layers: int, size: int, tokenizer, documents: list[str], depth: int = 0) -> str:
    """Trains a tiny Llama; with a `depth`, the state behind so many layers is trained to be readable too."""
    sizes = {"hidden_size": size, "intermediate_size": 3 * size, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": size // HEAD_SIZE, "num_key_value_heads": size // HEAD_SIZE}
    model = model_from_scratch("llama", sizes | {"max_position_embeddings": 1024}, tokenizer)
    supervision = EvidenceFlowConfig(objective="cross_entropy", layers=[depth - 1]) if depth else None
    folder = Path(args.output_dir) / name
    pretrain(model, tokenizer, documents, folder, args.train_steps, seed=args.seed, supervision=supervision)
    return str(folder)


def hold_out(documents: list[str]) -> tuple[list[str], list[str]]:
    """Documents for training, and some from the end of the text; a single document is cut."""
    if len(documents) == 1:
        return split_documents(documents, 0.1)
    held_out = min(len(documents) // 10 + 1, 200)
    return documents[:-held_out], documents[-held_out:]


def encode_prompts(args, tokenizer, documents: list[str]) -> list[list[int]]:
    """The first documents that are long enough for a prompt, as tokens."""
    encoded = [tokenizer(text)["input_ids"] for text in documents]
    long_enough = [ids for ids in encoded if len(ids) >= args.prompt_tokens]
    if not long_enough:
        raise ValueError(
            f"The longest of {len(documents)} held-out documents has {max(map(len, encoded))} tokens, fewer than "
            f"`prompt_tokens` ({args.prompt_tokens}). Lower it, or give more text."
        )
    return long_enough[: args.prompts]


def load_models(args, tokenizer, documents: list[str], drafts: bool):
    """The target and, if there are to be `drafts`, the model that makes them."""
    target, draft = args.model_name_or_path, args.draft_name_or_path
    if target is None:
        target = train_llama(
            args, "target", args.target_layers, args.target_size, tokenizer, documents, args.early_exit_depth
        )
        if drafts:
            draft = train_llama(args, "draft", args.draft_layers, args.draft_size, tokenizer, documents)
    return load_model(target, device="cpu")[0], load_model(draft, device="cpu")[0] if drafts else None


def test_sampling(args, target, draft, prompt) -> dict[str, dict]:
    """Two tokens behind a prompt, again and again: are they distributed as the target says?"""
    exact = continuation_probabilities(target, prompt).flatten()
    fixed_drafts(draft, 2)
    tests = {}
    for name, model, settings in (
        ("the target", target, {}),
        ("the target, with drafts", target, {"assistant_model": draft}),
        ("the draft model alone (control)", draft, {}),
    ):
        counts = count_continuations(model, prompt, args.draws, args.seed, **settings)
        test = total_variation_test(counts.flatten().numpy(), exact.numpy(), seed=args.seed)
        tests[name] = {**test._asdict(), "draws": args.draws}
        print(f"Samples from {name}: total variation {test.distance:.3f}, p = {test.p_value:.4f}", flush=True)
    return tests


def main(argv: list[str] | None = None) -> dict:
    (args,) = RecipeParser(FastInferenceArguments, __doc__).parse_args_and_config(argv)
    with course_run("fast_inference", args) as run:
        documents, held_out = hold_out(course_documents(args))
        draft_ways = {count: name for count, name in args.draft_ways.items() if name in args.methods}
        drafts = bool(draft_ways) or SAMPLING in args.methods
        if args.model_name_or_path is None:
            tokenizer = train_text_tokenizer(documents, vocab_size=512)
        else:
            tokenizer = load_tokenizer(args.model_name_or_path)
        # Prompts of different lengths, from text that is not trained on
        encoded = encode_prompts(args, tokenizer, held_out)
        target, draft = load_models(args, tokenizer, documents, drafts)
        lengths = [args.prompt_tokens - place % (args.prompt_tokens // 2) for place in range(len(encoded))]
        prompts = [ids[:length] for ids, length in zip(encoded, lengths)]
        rows = [torch.tensor([prompt]) for prompt in prompts]

        ways = {name: {"assistant_model": draft, "draft_count": count} for count, name in draft_ways.items()}
        ways[LOOK_UP] = {"prompt_lookup_num_tokens": 4}
        if args.early_exit_depth:
            ways[STOCK_EXIT] = {"assistant_early_exit": args.early_exit_depth}
            ways[OWN_EXIT] = {"custom_generate": SelfSpeculation(target, args.early_exit_depth)}
        ways = {name: way for name, way in ways.items() if name in args.methods}
        tables, metrics, note = [], {}, f"{len(prompts)} prompts. "
        speculation, caches, trace = {}, {}, None
        if ways:
            speculation = compare_speculation(target, rows, {"plain": {}} | ways, args.max_new_tokens, args.rounds)
            print(f"Speculative decoding: {len(ways)} ways, {len(rows)} prompts", flush=True)
            tables.append(speculation_table(speculation, len(rows)))
            metrics["speculation"] = {name: result.to_dict() for name, result in speculation.items()}
        if SAMPLING in args.methods:
            metrics["sampling"] = test_sampling(args, target, draft, rows[0])
            tables.append(sampling_table(metrics["sampling"]))
        if CACHES in args.methods:
            caches = {
                name: decode_with_cache(target, rows[0], make, 4 * args.max_new_tokens)
                for name, make in cache_kinds(target, args.prompt_tokens + 4 * args.max_new_tokens).items()
            }
            print(f"Caches: {', '.join(caches)}", flush=True)
            tables.append(cache_table(caches))
            metrics["caches"] = {name: {"megabytes": result.megabytes} for name, result in caches.items()}
        if SERVING in args.methods:
            # All prompts begin with the same instruction, so that there is a prefix to share
            instruction = encoded[0][: 2 * args.block_size]
            serving, trace = compare_serving(
                target,
                [instruction + prompt for prompt in prompts],
                args.num_samples,
                args.max_new_tokens,
                args.num_blocks,
                args.block_size,
                tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                args.seed,
            )
            tables.append(serving_table(serving))
            metrics |= {"serving": serving, "paged": vars(trace)}
            note += (
                f"{args.num_samples} samples of each in the last table: of {trace.prompt_tokens} tokens of prompts, "
                f"{trace.found_tokens} were found in the cache, as all begin with the same {len(instruction)}; "
                f"{trace.copies} blocks were copied on a write, and sharing saved at most {max(trace.saved)} blocks "
                "at a time. "
            )
        run.draw(plot_fast_inference, inference_rows(speculation, draft_ways, caches, trace))
        return run.finish(tables, f"{note}One seed.", metrics)


if __name__ == "__main__":
    torch.set_num_threads(1)  # at this size a second thread only waits for the first
    run_recipe(main)
