"""`recipes/pretrain_clm.py` end to end at the smallest size, and what it says to bad input."""

import json

import pytest
import torch
import yaml
from repository import RECIPES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evidenceflow.recipes import pretrain_clm
from hf_evidenceflow.report.run_record import read_run_record
from hf_evidenceflow.run_folder.manifest import write_manifest


CONFIG = RECIPES / "configs/pretrain_clm/smoke.yaml"
TIMES = {
    f"{mode}_{name}" for mode in ("train", "eval") for name in ("runtime", "samples_per_second", "steps_per_second")
}
TIMES |= {"train_seconds", "train_tokens_per_second"}
TINY = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
OPT = {
    "hidden_size": 8,
    "word_embed_proj_dim": 8,
    "ffn_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "do_layer_norm_before": False,
}
GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def recipe():
    return pretrain_clm


@pytest.fixture
def run(recipe, tmp_path):
    """Runs the recipe with the smoke settings, smaller, and the options given; returns its trainer."""

    def run(name="run", config=CONFIG, **options):
        settings = {
            "output_dir": str(tmp_path / name),
            "config_overrides": json.dumps(TINY | {"max_position_embeddings": 32}),
            "generated_documents": 40,
            "train_vocab_size": 270,
            "block_size": 16,
            "max_steps": 4,
            "warmup_steps": 0,
            "save_steps": 2,
            "eval_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 3,
            "per_device_eval_batch_size": 5,
            **options,
        }
        arguments = [part for key, value in settings.items() if value is not None for part in (f"--{key}", str(value))]
        return recipe.main([*(["--config", str(config)] if config else []), *arguments])

    return run


def logged(trainer):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in trainer.state.log_history]


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_run_leaves_model_record_log_and_picture(run, tmp_path):
    trainer = run(plot="true")
    folder = tmp_path / "run"
    record = read_run_record(folder)
    assert record["status"] == "finished"
    assert set(record["metrics"]) == {
        *("eval_loss", "eval_perplexity", "eval_accuracy"),
        *("train_loss", "train_seconds", "train_tokens", "num_parameters"),
    }
    assert record["metrics"]["train_tokens"] == 4 * 3 * 16
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) and tokenizer.eos_token == "<|endoftext|>"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in trainer.state.log_history]
    assert any("evidence_flow/loss" in row for row in rows)
    assert all("train_seconds" in row and "train_tokens" in row for row in rows)
    assert (folder / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(run, tmp_path):
    first, second = run("first"), run("second", cache_dir=tmp_path / "cache")
    third = run("third", cache_dir=tmp_path / "cache")
    assert logged(first) == logged(second) == logged(third)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["none", "mse", "cross_entropy"])
def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path, objective, monkeypatch):
    # Dropout and drawn tokens, so that the state of the generators counts
    settings = {"evidence_objective": objective, "model_type": "gpt2", "config_overrides": json.dumps(GPT2)}
    settings["logging_steps"] = 3  # the checkpoint falls between two rows
    whole = run("whole", **settings)
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole/checkpoint-2").rename(tmp_path / "resumed/checkpoint-2")
    resumed = run("resumed", resume_from_checkpoint="true", **settings)
    assert logged(resumed) == logged(whole)
    ours, theirs = weights(tmp_path / "resumed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting_seconds_and_tokens(run, tmp_path):
    run(max_steps=2)
    state = tmp_path / "run/checkpoint-2/trainer_state.json"
    content = json.loads(state.read_text())
    content["stateful_callbacks"]["TrainingClock"]["attributes"]["seconds"] = 1000.0
    state.write_text(json.dumps(content))
    write_manifest(state.parent)
    trainer = run(resume_from_checkpoint="true")
    metrics = read_run_record(tmp_path / "run")["metrics"]
    assert 1000 < metrics["train_seconds"] < 1100
    assert metrics["train_tokens"] == 4 * 3 * 16 == trainer.state.num_input_tokens_seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "overrides", "packing"),
    [
        ("llama", TINY | {"tie_word_embeddings": False}, "documents"),
        ("opt", OPT, "blocks"),
        ("gpt2", GPT2, "none"),
        ("thinking_llama", TINY, "blocks"),
    ],
)
def test_model_types_and_packings(run, model_type, overrides, packing):
    trainer = run(model_type=model_type, config_overrides=json.dumps(overrides), packing=packing, max_steps=2)
    assert trainer.model.config.model_type == model_type
    assert trainer.final_metrics()["eval_loss"] < 7


@pytest.mark.slow
def test_from_text_files_to_a_checkpoint_to_lora_and_to_sft(run, tmp_path):
    (tmp_path / "train.txt").write_text("The cat sat on the mat. " * 90)
    (tmp_path / "held_out.txt").write_text("The cat sat. " * 30)
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "held_out.txt"}
    run("scratch", max_steps=2, max_eval_samples=3, **files)
    started = {
        "model_name_or_path": tmp_path / "scratch",
        **{"config": None, "config_overrides": None, "train_vocab_size": None, "generated_documents": None},
        **{"use_cpu": "true", "disable_tqdm": "true", "max_steps": 2},
    }
    adapted = run("adapted", lora_r=2, learning_rate=1.0, **files, **started)
    assert adapted.model.peft_config["default"].r == 2
    assert not (tmp_path / "adapted/model.safetensors").exists()

    looped = run("looped", num_loops=2, loop_damping="true", **files, **started)
    assert looped.model.config.num_hidden_layers == 4
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "looped")).__name__ == "LoopedLlamaForCausalLM"

    rows = [{"prompt": "The cat", "completion": f" sat on {n} mats."} for n in range(20)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuned = run(
        "sft", task="sft", train_file=tmp_path / "sft.jsonl", validation_share=0.2, evidence_objective="mse", **started
    )
    first = tuned.train_dataset[0]
    learned = [token for token, label in zip(first["input_ids"], first["labels"]) if label != -100]
    assert tuned.processing_class.decode(learned).replace("<|endoftext|>", "") == " sat on 0 mats."
    assert len(tuned.eval_dataset) == 4
    assert read_run_record(tmp_path / "sft")["metrics"]["eval_loss"] > 0
    assert any("evidence_flow/loss" in row for row in tuned.state.log_history)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(run, recipe, tmp_path, monkeypatch, capsys):
    class Interrupted(recipe.LogFileCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "LogFileCallback", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert "checkpoint-2. Go on with" in capsys.readouterr().err
    assert read_run_record(tmp_path / "run")["status"] == "interrupted"


@pytest.mark.slow
def test_a_model_that_mixes_packed_documents_is_refused(run):
    # transformers' OPT builds its mask without the positions
    with pytest.raises(ValueError, match="OPTForCausalLM lets the documents of a row see each other"):
        run(model_type="opt", config_overrides=json.dumps(OPT), packing="documents")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_name_or_path": "some/model"}, "exactly one of `model_name_or_path`.*and `model_type`"),
        ({"model_type": "lama"}, "'lama' is not known. Did you mean.*'llama'"),
        ({"model_type": "vit"}, "'vit' has no causal LM"),
        (
            {"config_overrides": '{"hiden_size": 8}'},
            "`hiden_size` is no field of LlamaConfig. Did you mean 'hidden_size'",
        ),
        ({"config_overrides": '{"vocab_size": 5}'}, "`vocab_size` is 5, but the tokenizer has"),
        ({"config_overrides": "{hidden"}, "must be a JSON object"),
        ({"config_overrides": "[1]"}, "must hold a JSON object"),
        ({"block_size": 64}, "`block_size` is 64, but the model has 32 positions"),
        ({"train_vocab_size": 257}, "at least 258"),
        ({"tokenizer_name_or_path": "some/tokenizer"}, "one of `tokenizer_name_or_path` and `train_vocab_size`"),
        ({"train_file": "{file}"}, "no validation data"),
        ({"train_file": "{file}", "validation_file": "{file}"}, "tokens, fewer than one block of 16"),
        ({"train_file": "{file}", "dataset_name_or_path": "{file}"}, "one of `train_file` and `dataset_name_or_path`"),
        ({"train_file": "{empty}", "validation_share": 0.1}, "holds no text"),
        ({"exponential_decay_rate": 0.9}, "exactly one of `decay_rate` and `final_ratio`"),
        ({"lr_scheduler_type": "cosine"}, "need `lr_scheduler_type` 'warmup_exponential', got 'cosine'"),
        ({"evidence_objective": "mean"}, "`objective` must be one of"),
        ({"evidence_objective": "none", "evidence_weight": 2}, "`evidence_weight` has no effect without"),
        ({"num_loops": 2}, "`num_loops` is for a checkpoint"),
        ({"loop_damping": "true"}, "`loop_block` and `loop_damping` need `num_loops`"),
        ({"task": "sft"}, "`task=sft` takes no `train_vocab_size`"),
    ],
)
def test_bad_settings_are_explained(run, tmp_path, options, words):
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").write_text("")
    names = {"{file}": str(tmp_path / "short.txt"), "{empty}": str(tmp_path / "empty.txt")}
    with pytest.raises(ValueError, match=words):
        run(**{key: names.get(value, value) for key, value in options.items()})


def test_a_missing_file_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file.*gone.txt"):
        run(train_file=tmp_path / "gone.txt", validation_share=0.1)


def test_an_unknown_key_in_the_file_is_an_error(run, tmp_path):
    config = tmp_path / "typo.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(CONFIG.read_text()), "learning_rte": 1.0}))
    with pytest.raises(ValueError, match="learning_rte"):
        run(config=config)
