"""
Merge an adapter into its base: a checkpoint of its own, with tokenizer, thinking modules and the way of thinking.

```bash
python recipes/merge_adapter.py --adapter outputs/latent --output_dir outputs/latent-merged --dtype bfloat16
```

The checkpoint is what a training with a new adapter starts from, and what tools read that know no adapters. The sum is
made in fp32 and rounded once, to `dtype`.
"""

from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import torch

from hf_evidenceflow.models.loading import load_model
from hf_evidenceflow.peft.adapter_file import read_adapter
from hf_evidenceflow.run_folder.exit_codes import run_recipe


DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class MergeArguments:
    """
    Args:
        adapter (`str`):
            Folder or Hub name of the adapter.
        output_dir (`str`):
            Folder of the merged checkpoint.
        base_model (`str`, *optional*):
            Base of the adapter, where it is not the one that the adapter names.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Type of the merged weights.
    """

    adapter: str
    output_dir: str
    base_model: str | None = None
    dtype: str = field(default="float32", metadata={"choices": list(DTYPES)})

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}.")


def main(argv: list[str] | None = None) -> None:
    (args,) = RecipeParser(MergeArguments, __doc__).parse_args_and_config(argv)
    if read_adapter(args.adapter) is None:
        raise ValueError(f"`{args.adapter}` has no `adapter_config.json`, so there is nothing to merge.")
    model, tokenizer = load_model(args.adapter, args.base_model, device="cpu", dtype=torch.float32)
    model.merge_and_unload().to(getattr(torch, args.dtype)).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"Merged checkpoint: {args.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
