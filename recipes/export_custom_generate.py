"""
Write a way to generate as a repository that any model loads by `generate(custom_generate=...)`, without this package.

```bash
python recipes/export_custom_generate.py --method soft_thinking --output_dir outputs/soft-thinking
```

In `output_dir` are `custom_generate/generate.py`, its `requirements.txt` and a README, to be used from there, or to be
uploaded to the Hub (`hf upload me/soft-thinking outputs/soft-thinking`) and used under that name.
"""

from dataclasses import dataclass, field

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.models.custom_generate.source import METHODS, write_custom_generate
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class ExportArguments:
    """
    Args:
        method (`str`):
            `soft_thinking`, `swireasoning` or `self_speculation`.
        output_dir (`str`):
            Folder of the repository.
    """

    method: str = field(metadata={"choices": list(METHODS)})
    output_dir: str


def main(argv: list[str] | None = None) -> None:
    (args,) = RecipeParser(ExportArguments, __doc__).parse_args_and_config(argv)
    print(f"Repository: {write_custom_generate(args.method, args.output_dir)}")


if __name__ == "__main__":
    run_recipe(main)
