"""
Continue prompts with any causal LM: greedily, or by sampling with temperature, top-k and top-p.

```bash
python recipes/generate.py --model_name_or_path outputs/llama --prompts "Once upon a time" "The king said" \
    --max_new_tokens 100 --temperature 0.8 --top_k 40 --top_p 0.95 --num_samples 2
```

`--prompt_file prompts.txt` reads one prompt per line. Everything is stock `generate`, with these settings alone: the
model's generation_config.json gives the end-of-sequence tokens only. The same seed gives the same text on CPU.
`--config settings.yaml` takes the arguments from a file. With `--output_file` the continuations are written as JSON
lines too: `prompt`, `sample`, `text`, and `finished`, which says whether the model ended the text itself.
"""

import json
from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch
from transformers import set_seed

from hf_evidenceflow.atomic_write import atomic_write_text, check_writable
from hf_evidenceflow.data.token_ids import check_token_ids
from hf_evidenceflow.files import read_lines
from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.recipes.command_line.number_checks import check_least, check_share
from hf_evidenceflow.rollouts.generation_settings import own_generation_config
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class GenerateArguments:
    """
    What to continue, and how.

    Args:
        model_name_or_path (`str`):
            Hub name or local folder of a causal LM with its tokenizer.
        prompts (`list[str]`, *optional*):
            Texts to continue. Without any the model begins by itself, from its BOS token.
        prompt_file (`str`, *optional*):
            File with one prompt per line, UTF-8; empty lines are left out.
        max_new_tokens (`int`, *optional*, defaults to `100`):
            Tokens of a continuation at most.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divides the logits before sampling; 0 takes the most probable token always.
        top_k (`int`, *optional*, defaults to `0`):
            Samples from so many of the most probable tokens; 0: from all.
        top_p (`float`, *optional*, defaults to `1.0`):
            Samples from the fewest most probable tokens with at least this probability together, in (0, 1].
        num_samples (`int`, *optional*, defaults to `1`):
            Continuations of each prompt.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        output_file (`str`, *optional*):
            JSON lines to write.
    """

    model_name_or_path: str
    prompts: list[str] = field(default_factory=list)
    prompt_file: str | None = None
    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0
    output_file: str | None = None

    def __post_init__(self):
        if self.prompts and self.prompt_file:
            raise ValueError("Give `prompts` or `prompt_file`, not both.")
        check_least(self, max_new_tokens=1, num_samples=1, temperature=0, top_k=0)
        check_share(self, "top_p")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(f"At `temperature` 0 all {self.num_samples} samples would be the same: take one.")


def read_prompts(args: GenerateArguments) -> list[str]:
    if args.prompt_file is None:
        return args.prompts or [""]
    return read_lines(args.prompt_file)


def encode(tokenizer, prompt: str) -> torch.Tensor:
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    if not ids:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ValueError("The tokenizer has no BOS and no EOS token to begin with. Give `prompts`.")
        ids = [start]
    return torch.tensor([ids])


def main(argv: list[str] | None = None) -> list[dict]:
    (args,) = RecipeParser(GenerateArguments, __doc__).parse_args_and_config(argv)
    prompts = read_prompts(args)
    if args.output_file is not None:
        check_writable(args.output_file)
    set_seed(args.seed)
    model, tokenizer = load_model(args.model_name_or_path, dtype="auto")
    sampling = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
    config = own_generation_config(
        model,
        max_new_tokens=args.max_new_tokens,
        num_return_sequences=args.num_samples,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        **sampling,
    )
    rows = []
    for prompt in prompts:
        input_ids = encode(tokenizer, prompt).to(model.device)
        check_token_ids(input_ids[0].tolist(), model, "A prompt")
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            tokenizer=tokenizer,
        )
        for sample, tokens in enumerate(output[:, input_ids.shape[1] :].tolist()):
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            rows.append({"prompt": prompt, "sample": sample, "text": text, "finished": not ends.isdisjoint(tokens)})
            print(f"{prompt}{text}\n", flush=True)
    if args.output_file is not None:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        path = atomic_write_text(args.output_file, "".join(f"{line}\n" for line in lines))
        print(f"Continuations: {path}")
    return rows


if __name__ == "__main__":
    run_recipe(main)
