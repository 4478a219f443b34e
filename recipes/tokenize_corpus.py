"""
Encode text files into memory-mapped shards of token ids.

```bash
python recipes/tokenize_corpus.py --config recipes/configs/tokenize_corpus/smoke.yaml
python recipes/tokenize_corpus.py --files train.txt --tokenizer_name_or_path outputs/tokenizer --processes 8 \
    --output_dir outputs/tokens
python recipes/pretrain_clm.py --model_type llama --tokenizer_name_or_path outputs/tokenizer \
    --train_tokens outputs/tokens --validation_tokens outputs/tokens-validation --output_dir outputs/llama
```

Outputs, in `output_dir`: `tokens-*.npy`, each with its count and checksum in a JSON, `index.json` and `run.json`. The
same command goes on after an interruption. Each shard is decoded and compared with its text. Without `files` the text
is generated, and without a tokenizer one is trained on it.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.data.text import END_OF_TEXT, generate_documents
from hf_evidenceflow.recipes.command_line.number_checks import check_least
from hf_evidenceflow.report.run_record import run_record
from hf_evidenceflow.run_folder.exit_codes import run_recipe
from hf_evidenceflow.tokenization.encoding import encode_files
from hf_evidenceflow.tokenization.training import train_tokenizer


@dataclass
class EncodingArguments:
    """
    Args:
        output_dir (`str`, *optional*, defaults to `"outputs/tokens"`):
            Folder of the shards.
        files (`list[str]`, *optional*):
            Text files, with a special token of the tokenizer between documents. If not given, stories are generated.
        tokenizer_name_or_path (`str`, *optional*):
            Byte-level tokenizer. If not given, one of 1,000 tokens is trained on the files.
        processes (`int`, *optional*, defaults to `2`):
            Processes that encode at the same time.
        shard_bytes (`int`, *optional*, defaults to 16 MiB):
            Bytes of text in a shard, about.
        documents (`int`, *optional*, defaults to `2000`):
            Documents to generate where there are no files.
        seed (`int`, *optional*, defaults to `0`):
            Seed of generated documents.
    """

    output_dir: str = "outputs/tokens"
    files: list[str] | None = None
    tokenizer_name_or_path: str | None = None
    processes: int = 2
    shard_bytes: int = 16 << 20
    documents: int = 2000
    seed: int = 0

    def __post_init__(self):
        check_least(self, processes=1, shard_bytes=1, documents=1)


def prepare(args: EncodingArguments) -> tuple[list[str], str]:
    """Files and tokenizer; what is made here is made once, so that a second start finds the same."""
    files, tokenizer = args.files, args.tokenizer_name_or_path
    if files is None:
        path = Path(args.output_dir) / "documents.txt"
        if not path.exists():
            atomic_write_text(path, END_OF_TEXT.join(generate_documents(args.documents, seed=args.seed)[0]))
        files = [str(path)]
    if tokenizer is None:
        tokenizer = str(Path(args.output_dir) / "tokenizer")
        if not (Path(tokenizer) / "tokenizer_config.json").exists():
            train_tokenizer(files, 1000, [END_OF_TEXT], processes=args.processes).save_pretrained(tokenizer)
    return files, tokenizer


def main(argv: list[str] | None = None):
    (args,) = RecipeParser(EncodingArguments, __doc__).parse_args_and_config(argv)
    with run_record(args.output_dir, script=args) as record:
        files, tokenizer = prepare(args)
        start = time.perf_counter()
        corpus = encode_files(files, tokenizer, args.output_dir, args.processes, args.shard_bytes, progress=True)
        seconds = time.perf_counter() - start
        size = corpus.index["bytes"]
        record.add(metrics={"tokens": len(corpus), "bytes": size, "encode_seconds": seconds})
    shards = len(corpus.shards)
    print(f"{len(corpus):,} tokens of {size:,} bytes in {shards} shards of {args.output_dir}, {seconds:.1f} s")
    return corpus


if __name__ == "__main__":
    run_recipe(main, interrupted="Interrupted. Go on with the same command: finished shards are kept.")
