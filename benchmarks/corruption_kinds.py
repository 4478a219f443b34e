"""What is damaged: folders that our own tools write, and for each the way in which a person uses it."""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_evidenceflow.recipes.command_line.arguments import RecipeParser

import numpy as np
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import Qwen2Config, Qwen2ForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, TinySeekConfig, load_thinking_model
from hf_evidenceflow.data import load_tokenizer
from hf_evidenceflow.data.text import generate_documents, load_documents
from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer
from hf_evidenceflow.data.token_blocks import TokenBlocks
from hf_evidenceflow.models.tinyseek import convert_tinyseek
from hf_evidenceflow.recipes.experiments.grid_file import load_grid
from hf_evidenceflow.recipes.experiments.plan import make_plan
from hf_evidenceflow.tasks import build_word_problem_tokenizer, generate_word_problems, load_gsm8k
from hf_evidenceflow.tokenization.encoding import encode_files, load_encoded
from hf_evidenceflow.trainers.pretraining_config import PretrainingConfig


ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["Tom has 3 apples and buys 12 more. How many apples?", "Ann\n\n#### 7", "é ½ <eos> <pad>"]
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
CHECKPOINTS = ["model.safetensors", "config.json", "generation_config.json", "trainer_state.json", "optimizer.pt"]
CHECKPOINTS += ["scheduler.pt", "rng_state.pth", "tokenizer.json", "tokenizer_config.json", "training_args.bin"]


@dataclass(frozen=True)
class Kind:
    """
    A kind of input.

    Args:
        build (`Callable[[Path], None]`): makes the folder.
        use (`Callable[[Path], str | int]`): uses it as a person would; a fingerprint of the result, or an exit code.
        files (`tuple[str, ...]`): the files to damage; those that the folder lacks are left out.
        guarded (`tuple[str, ...]`): those that have a checksum, so that other legal values must be found as well.
    """

    build: Callable[[Path], None]
    use: Callable[[Path], str | int]
    files: tuple[str, ...]
    guarded: tuple[str, ...] = ()


def recipe(name: str):
    """A recipe as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "recipes" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(*parts) -> str:
    """A fingerprint of tensors, arrays and anything that JSON holds."""
    total = hashlib.sha256()
    for part in parts:
        if torch.is_tensor(part):
            part = part.detach().float().contiguous().numpy()
        total.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part, default=str).encode())
    return total.hexdigest()


# Models, adapters and tokenizers


def plain_model(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_word_problem_tokenizer()
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = Qwen2Config(vocab_size=len(tokenizer), **SIZES, **ids, initializer_range=0.2, tie_word_embeddings=False)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def thinking_model(folder: Path) -> None:
    plain_model(folder)
    model = load_thinking_model(str(folder), thinking_residual_r_min=0.5, thinking_residual_r_max=0.6)
    model.save_pretrained(folder)


def sharded_model(folder: Path) -> None:
    thinking_model(folder / "whole")
    load_thinking_model(str(folder / "whole")).save_pretrained(folder, max_shard_size="20KB")
    shutil.rmtree(folder / "whole")
    build_word_problem_tokenizer().save_pretrained(folder)


def use_model(folder: Path) -> str:
    tokenizer = build_word_problem_tokenizer()
    model = load_thinking_model(str(folder)).eval()
    ids = tokenizer([TEXTS[0]], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
        states = torch.randn(1, ids.shape[1], 24, generator=torch.Generator().manual_seed(1))
        fused = model(ids, thinking_states=states, thinking_mask=torch.ones_like(ids, dtype=torch.bool)).logits
        tokens = model.generate(ids, max_new_tokens=5, tokenizer=tokenizer)
    return digest(logits, fused, tokens)


def adapter(folder: Path) -> None:
    plain_model(folder / "base")
    args = HRPOConfig(
        str(folder / "adapter"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=2,
        num_generations=2,
        max_steps=1,
        max_completion_length=4,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list([{"prompt": TEXTS[0], "answer": "15"}] * 2)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = HRPOTrainer(
        str(folder / "base"),
        lambda completions, **kwargs: [float(len(text)) for text in completions],
        args=args,
        train_dataset=rows,
        peft_config=lora,
    )
    trainer.train()
    trainer.save_model()


def use_adapter(folder: Path) -> str:
    # The path in it is where the fixture was made
    settings = folder / "adapter" / "adapter_config.json"
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, AttributeError):
        content = json.loads(settings.read_text())
        if content.get("base_model_name_or_path", "").endswith("/base"):
            content["base_model_name_or_path"] = str(folder / "base")
            settings.write_text(json.dumps(content))
    return use_model(folder / "adapter")


def use_tokenizer(folder: Path) -> str:
    tokenizer = load_tokenizer(str(folder))
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    texts = [tokenizer.decode(row) for row in ids]
    padded = tokenizer(TEXTS, padding=True)["input_ids"]
    return digest(ids, texts, padded, tokenizer.eos_token_id, tokenizer.pad_token_id)


def published_tinyseek(folder: Path) -> None:
    torch.manual_seed(0)
    words = [*convert_tinyseek._SPECIAL_TOKENS.values(), *"0123456789.?", "the", "cat", "Tom", "has"]
    original = {"vocab_size": len(words), "n_layer": 2, "n_head": 2, "d_model": 16, "d_r": 4, "hidden": 5}
    original |= {"other_experts": 4, "shared_experts": 2, "keep": 2, "dropout": 0.1, "scale": 0.1, "alpha": 0.01}
    original |= {"pad_idx": 0, "d_c": 6, "ro_theta": 10000}
    config: TinySeekConfig = convert_tinyseek.convert_original_config(original)
    shapes = convert_tinyseek.original_shapes(config)
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "weights.pkl")
    (folder / "config.json").write_text(json.dumps(original))
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))


def use_published_tinyseek(folder: Path) -> str | int:
    files = {"checkpoint": "weights.pkl", "config": "config.json", "vocab": "vocab.json", "output": "converted"}
    code = convert_tinyseek.main([part for name, file in files.items() for part in (f"--{name}", str(folder / file))])
    if code:
        return code
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "converted")
    tokenizer = load_tokenizer(folder / "converted")
    ids = tokenizer(["the cat has 3."], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return digest(model(ids).logits, ids)


# Runs


def stopped_run(folder: Path) -> None:
    """A pretraining that was stopped behind its second checkpoint of three steps."""
    pretrain(folder)
    run = folder / "run"
    shutil.rmtree(run / "checkpoint-3")
    for file in run.glob("*"):
        if file.is_file() and file.name not in ("run.json", "log.jsonl"):
            file.unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))


def pretrain(folder: Path, *more: str) -> str:
    options = {"model_type": "llama", "config_overrides": json.dumps(SIZES), "train_vocab_size": "270"}
    options |= {"generated_documents": "30", "block_size": "32", "max_steps": "3", "save_steps": "1"}
    options |= {"per_device_train_batch_size": "2", "use_cpu": "true", "disable_tqdm": "true", "report_to": "none"}
    options |= {"output_dir": str(folder / "run"), "save_total_limit": "5", "logging_steps": "1", "plot": "false"}
    argv = [part for name, value in options.items() for part in (f"--{name}", value)]
    trainer = recipe("pretrain_clm.py").main([*argv, *more])
    losses = [row.get("loss") for row in trainer.state.log_history if "loss" in row]
    return digest(losses, *(parameter for _, parameter in sorted(trainer.model.named_parameters())))


def use_stopped_run(folder: Path) -> str:
    return pretrain(folder, "--resume_from_checkpoint", "true")


def evaluation(folder: Path) -> None:
    plain_model(folder / "model")
    rows = generate_word_problems(6, seed=1)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    use_evaluation(folder)


def use_evaluation(folder: Path) -> str:
    # The same paths for each case, since they are among the settings
    before = Path.cwd()
    os.chdir(folder)
    try:
        argv = ["--model_name_or_path", "./model", "--dataset_name_or_path", "problems.jsonl", "--batch_size", "2"]
        argv += ["--output_dir", "out", "--max_new_tokens", "6", "--graders", "strict", "--device", "cpu"]
        recipe("evaluate_gsm8k.py").main(argv)
        metrics = json.loads(Path("out/metrics.json").read_text())
        rows = [json.loads(line) for line in Path("out/greedy.jsonl").read_text().splitlines()]
        timed = ("seconds", "crc32", "tokens_per_second")
        return digest(
            [{key: row[key] for key in row if key not in timed} for row in rows], metrics["greedy"]["graders"]
        )
    finally:
        os.chdir(before)


def recipe_config(folder: Path) -> None:
    plain_model(folder / "model")
    settings = {"model_name_or_path": "./model", "prompts": ["Tom has 3", "Ann"], "max_new_tokens": 4, "seed": 3}
    settings |= {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "num_samples": 2}
    (folder / "generate.yaml").write_text(yaml.dump(settings))


def use_recipe_config(folder: Path) -> str:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return digest(recipe("generate.py").main(["--config", "generate.yaml"]))
    finally:
        os.chdir(before)


# Data and grids


def data(folder: Path) -> None:
    rows = generate_word_problems(9, seed=1)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_csv(str(folder / "problems.csv"))
    Dataset.from_list(rows).to_parquet(str(folder / "problems.parquet"))
    (folder / "text.txt").write_text("<|endoftext|>".join(generate_documents(9, 1)[0]))


def use_data(folder: Path) -> str:
    names = ("train.jsonl", "problems.csv", "problems.parquet")
    problems = [load_gsm8k(str(folder / name), split="train").to_list() for name in names]
    return digest(problems, load_documents(str(folder / "text.txt")))


def shards(folder: Path) -> None:
    texts = generate_documents(60, 1)[0]
    (folder / "text.txt").write_text("<|endoftext|>".join(texts))
    train_text_tokenizer(texts, 300).save_pretrained(folder / "tokenizer")
    os.utime(folder / "text.txt", (1e9, 1e9))
    _encode(folder)


def _encode(folder: Path):
    # The same paths for each case, since they are among the settings
    before = Path.cwd()
    os.chdir(folder)
    try:
        return encode_files(["text.txt"], "tokenizer", "tokens", piece_bytes=2000)
    finally:
        os.chdir(before)


def _rows(corpus) -> str:
    rows = TokenBlocks(corpus.shards, block_size=32)
    return digest(*(rows[index]["input_ids"] for index in range(len(rows))))


def use_shards(folder: Path) -> str:
    return _rows(load_encoded(folder / "tokens"))


def use_shards_again(folder: Path) -> str:
    return _rows(_encode(folder))


def grid(folder: Path) -> None:
    text = (ROOT / "recipes" / "configs" / "run_experiment" / "smoke.yaml").read_text()
    content = yaml.safe_load(text) | {"exclude": [{"arm": "none", "size": "small"}]}
    content["axes"]["size"] = {"small": {"block_size": 32}, "large": {"block_size": 64}}
    content["recipe"] = str(ROOT / content["recipe"])
    content["config"] = "base.yaml"
    (folder / "grid.yaml").write_text(yaml.dump(content))
    (folder / "base.yaml").write_text((ROOT / "recipes" / "configs" / "pretrain_clm" / "smoke.yaml").read_text())


def use_grid(folder: Path) -> str:
    before = Path.cwd()
    os.chdir(folder)
    try:
        loaded = load_grid("grid.yaml")
        plan, pretraining = make_plan(loaded, lambda spec: None), recipe("pretrain_clm.py")
        parser = RecipeParser((pretraining.ScriptArguments, pretraining.EvidenceFlowArguments, PretrainingConfig))
        parsed = []
        for spec in plan.runs:  # as each run's recipe reads its options
            Path("run.yaml").write_text(yaml.dump(spec.options))
            parts = parser.parse_args_and_config(["--config", "run.yaml", "--output_dir", "out", "--seed", "1"])
            parsed.append([vars(part) for part in parts])
        return digest([spec.id for spec in plan.runs], parsed)
    finally:
        os.chdir(before)


def quietly(use: Callable[[Path], str | int], folder: Path) -> tuple[str | int, str]:
    """What came out, and what was printed to stderr."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
        result = use(folder)
    return result, printed.getvalue()


_RUN = tuple(f"run/checkpoint-2/{name}" for name in CHECKPOINTS)
_TOKENS = ("tokens/tokens-00001.npy", "tokens/tokens-00001.json", "tokens/tokens-00002.npy", "tokens/index.json")
KINDS = {
    "weights": Kind(thinking_model, use_model, ("model.safetensors",)),
    "sharded weights": Kind(
        sharded_model, use_model, ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
    ),
    "config": Kind(thinking_model, use_model, ("config.json", "generation_config.json")),
    "tokenizer": Kind(thinking_model, use_tokenizer, ("tokenizer.json", "tokenizer_config.json")),
    "adapter": Kind(
        adapter,
        use_adapter,
        tuple(f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "config.json")),
    ),
    "checkpoint": Kind(stopped_run, use_stopped_run, (*_RUN, "run/run.json"), _RUN),
    "TinySeek": Kind(published_tinyseek, use_published_tinyseek, ("weights.pkl", "config.json", "vocab.json")),
    "data": Kind(data, use_data, ("train.jsonl", "problems.csv", "problems.parquet", "text.txt")),
    "shards, loaded": Kind(shards, use_shards, _TOKENS, _TOKENS),
    "shards, encoded again": Kind(shards, use_shards_again, (*_TOKENS, "tokens/settings.json"), _TOKENS),
    "grid": Kind(grid, use_grid, ("grid.yaml", "base.yaml")),
    "recipe settings": Kind(recipe_config, use_recipe_config, ("generate.yaml",)),
    "evaluation": Kind(
        evaluation, use_evaluation, ("out/greedy.jsonl", "out/settings.json", "out/run.json"), ("out/greedy.jsonl",)
    ),
}
