"""
Seconds and peak memory of encoding a file: our shards against `tokenizers` and tiktoken, with all cores.

```bash
python benchmarks/tokenizer_encoding.py --text_file text.txt --output results/tokenizers/encoding.json
```

Each encoding is a process of its own, in turn, round after round; its time is from the file to the ids, without the
loading of the tokenizer. Ours also writes the ids, decodes them and compares them with the text; it runs with tiktoken
as its engine (`shards`) and without it (`shards_without_tiktoken`). All take the same vocabulary and end with the same
ids (a checksum says so). The others get the text in parts of 64 kB, for their threads. Text is grown as in
`tokenizer_training.py`. tiktoken takes part where it is installed.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import make_parser, setting
from tokenizer_training import grow_text

from hf_evidenceflow.atomic_write import atomic_write_json
from hf_evidenceflow.data.text import generate_documents
from hf_evidenceflow.tokenization.training import train_tokenizer


WORKER = """
import hashlib, json, resource, sys, tempfile, time
name, path, folder, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
import numpy as np
from hf_evidenceflow.tokenization.byte_level_codec import ByteLevelCodec
from hf_evidenceflow.tokenization.encoding import encode_files
from hf_evidenceflow.tokenization.pretokens import all_pieces, read_texts
codec = ByteLevelCodec(folder, use_tiktoken=name in ("shards", "tiktoken"))
encoding = codec._tiktoken
start = time.perf_counter()
if name.startswith("shards"):
    with tempfile.TemporaryDirectory() as output:
        corpus = encode_files([path], codec, output, processes=threads, piece_bytes=1 << 22)
        seconds = time.perf_counter() - start
        ids = np.concatenate(corpus.shards)
else:
    texts = [text for _, span in all_pieces([path], [], 1 << 16) for text in read_texts(path, [], span)]
    if name == "tiktoken":
        parts = encoding.encode_ordinary_batch(texts, num_threads=threads)
    else:
        parts = [part.ids for part in codec._backend.encode_batch_fast(texts, add_special_tokens=False)]
    ids = np.concatenate([np.array(part, dtype=np.uint16) for part in parts])
    seconds = time.perf_counter() - start
usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": seconds, "peak_mb": sum(usage) / 1024, "sha": hashlib.sha256(ids.tobytes()).hexdigest()}))
"""


def measure(name: str, *arguments) -> dict:
    command = [sys.executable, "-c", WORKER, name, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--text_file", type=Path, help="source of words; generated stories if not given")
    parser.add_argument("--megabytes", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--vocab_size", type=int, default=8000)
    args = parser.parse_args(argv)
    source = args.text_file.read_text("utf-8") if args.text_file else " ".join(generate_documents(2000)[0])
    names = ["shards_without_tiktoken", "tokenizers"]
    if importlib.util.find_spec("tiktoken") is not None:
        names = ["shards", *names, "tiktoken"]
    results = {"setting": setting(args, "tokenizer_encoding", argv), "points": []}
    with tempfile.TemporaryDirectory() as scratch:
        path, folder = Path(scratch) / "text.txt", Path(scratch) / "tokenizer"
        grow_text(source, 1, path)
        train_tokenizer([path], args.vocab_size, []).save_pretrained(folder)
        for megabytes in args.megabytes:
            grow_text(source, megabytes, path)
            runs = {name: [] for name in names}
            for _ in range(args.rounds):
                for name in names:
                    runs[name].append(measure(name, path, folder, args.threads))
            if len({run["sha"] for rows in runs.values() for run in rows}) > 1:
                raise RuntimeError(f"The encodings of {megabytes} MB differ: {runs}")
            point = {"megabytes": megabytes}
            for name, rows in runs.items():
                seconds = [run["seconds"] for run in rows]
                point[name] = {
                    "seconds": round(statistics.median(seconds), 3),
                    "range": [round(min(seconds), 3), round(max(seconds), 3)],
                    "peak_mb": round(max(run["peak_mb"] for run in rows)),
                }
            best = min(point[name]["seconds"] for name in names if not name.startswith("shards"))
            for name in filter(lambda name: name.startswith("shards"), names):
                point[name]["speed_relative_to_the_best_other"] = round(best / point[name]["seconds"], 3)
            results["points"].append(point)
            print(json.dumps(point))
            if args.output:
                atomic_write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
