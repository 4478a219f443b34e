"""
Train a byte-level BPE tokenizer on text files.

```bash
python recipes/train_tokenizer.py --config recipes/configs/train_tokenizer/smoke.yaml
python recipes/train_tokenizer.py --train_files train.txt --vocab_size 10000 --tie_rule greatest --processes 8 \
    --output_dir outputs/tokenizer
```

Outputs, in `output_dir`: a tokenizer folder that `AutoTokenizer` loads, and `run.json`. Without `train_files` the text
is generated.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from transformers import AutoTokenizer

from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tokenization.training import train_tokenizer


@dataclass
class TokenizerArguments:
    """
    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/tokenizer"`):
            Folder of the tokenizer.
        train_files (`list[str]`, *optional*):
            Text files, with a special token between documents if they are larger than some megabytes. If not given,
            stories are generated.
        vocab_size (`int`, *optional*, defaults to `10000`):
            Tokens, special ones and the 256 bytes among them.
        special_tokens (`list[str]`, *optional*, defaults to `["<|endoftext|>"]`):
            Tokens that are never split.
        tie_rule (`str`, *optional*, defaults to `"tokenizers"`):
            `"tokenizers"` or `"greatest"` (CS336), see [`train_tokenizer`].
        processes (`int`, *optional*, defaults to `2`):
            Processes that count words, with the rule `"greatest"`.
        documents (`int`, *optional*, defaults to `2000`):
            Documents to generate where there are no files.
        seed (`int`, *optional*, defaults to `0`):
            Seed of generated documents.
    """

    output_dir: str = "outputs/tokenizer"
    train_files: list[str] | None = None
    vocab_size: int = 10000
    special_tokens: list[str] = field(default_factory=lambda: [END_OF_TEXT])
    tie_rule: str = "tokenizers"
    processes: int = 2
    documents: int = 2000
    seed: int = 0


def main(argv: list[str] | None = None):
    (args,) = RecipeParser(TokenizerArguments, __doc__).parse_args_and_config(argv)
    with run_record(args.output_dir, script=args) as record, tempfile.TemporaryDirectory() as scratch:
        files = args.train_files
        if files is None:
            files = [Path(scratch) / "documents.txt"]
            files[0].write_text(
                END_OF_TEXT.join(generate_documents(args.documents, seed=args.seed)[0]), encoding="utf-8"
            )
        start = time.perf_counter()
        tokenizer = train_tokenizer(
            files, args.vocab_size, args.special_tokens, args.tie_rule, args.processes, progress=True
        )
        seconds = time.perf_counter() - start
        tokenizer.save_pretrained(args.output_dir)
        size = sum(Path(path).stat().st_size for path in files)
        record.add(metrics={"vocab_size": len(tokenizer), "train_seconds": seconds, "train_bytes": size})
    print(f"{len(AutoTokenizer.from_pretrained(args.output_dir))} tokens in {args.output_dir}, {seconds:.1f} s")
    return tokenizer


if __name__ == "__main__":
    run_recipe(main)
