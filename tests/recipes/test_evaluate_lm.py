"""`recipes/evaluate_lm.py` on tiny checkpoints, and what it says to bad input."""

import importlib.util
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from repository import RECIPES
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM


CONFIG = RECIPES / "configs/evaluate_lm/smoke.yaml"
TEXT = "Ann has 2 eggs and buys 3. " * 12
PARTS = ("perplexity", "long_text", "top_predictions", "continuations")


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("evaluate_lm", RECIPES / "evaluate_lm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def evaluate(recipe, plain_checkpoint, tmp_path):
    """Calls main() with the smoke settings, smaller; `only` names the parts, keyword arguments are options."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)

    def evaluate(output="out", only=PARTS, config=CONFIG, **options):
        settings = {
            "model_name_or_path": plain_checkpoint,
            "output_dir": tmp_path / output,
            "dataset_name_or_path": text,
            "block_size": 32,
            "context_lengths": "16,32,64",
            "chunk_size": 24,
            "max_prompts": 2,
            "prompt_tokens": 5,
            "top_k": 3,
            "max_new_tokens": 6,
            "device": "cpu",
            **{part: "false" for part in PARTS if part not in only},
            **options,
        }
        arguments = ["--config", str(config)]
        for name, value in settings.items():
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *map(str, values)]
        return recipe.main(arguments)

    return evaluate


def loss(metrics):
    return metrics["perplexity"]["loss"]


def test_a_run_leaves_record_and_report_and_nothing_else(evaluate, tmp_path):
    metrics = evaluate()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "evaluation.md"]
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["status"] == "finished" and record["versions"]["torch"] and record["metrics"] == metrics
    assert record["configs"]["evaluation"]["context_lengths"] == [16, 32, 64]
    report = (tmp_path / "out" / "evaluation.md").read_text()
    for part in ("Perplexity", "Long text", "Most probable next tokens", "Repetition"):
        assert f"\n## {part}\n" in report


def test_the_same_seed_gives_the_same_results(evaluate):
    assert evaluate("one") == evaluate("two")


def test_parts_can_be_left_out(evaluate):
    assert set(evaluate(only=("perplexity",))) == {"perplexity"}


def test_the_record_of_the_training_stays(evaluate, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("{}")
    evaluate(only=("perplexity",))
    assert (tmp_path / "out" / "run.json").read_text() == "{}"


def test_an_earlier_evaluation_is_kept_unless_overwritten(evaluate):
    evaluate(only=("perplexity",))
    with pytest.raises(ValueError, match="holds an evaluation.*--overwrite"):
        evaluate(only=("perplexity",))
    evaluate(only=("perplexity",), overwrite="true")


def test_an_adapter_is_evaluated_on_its_base(evaluate, plain_checkpoint, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(plain_checkpoint),
        LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapted = loss(evaluate("one", ("perplexity",), model_name_or_path=tmp_path / "adapter"))
    merged = loss(
        evaluate(
            "two",
            ("perplexity",),
            model_name_or_path=tmp_path / "merged",
            tokenizer_name_or_path=plain_checkpoint,
        )
    )
    assert adapted == pytest.approx(merged, abs=1e-5)
    assert abs(adapted - loss(evaluate("three", ("perplexity",)))) > 1e-3


def test_the_base_of_an_adapter_can_be_elsewhere(evaluate, plain_checkpoint, tmp_path):
    base = shutil.copytree(plain_checkpoint, tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=3, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=r"base of the adapter.*give `base_model`"):
        evaluate("one", model_name_or_path=tmp_path / "adapter")
    evaluate("two", ("perplexity",), model_name_or_path=tmp_path / "adapter", base_model=plain_checkpoint)


@pytest.mark.slow
def test_a_trainer_checkpoint_is_evaluated_as_its_model(evaluate, plain_checkpoint, tokenizer, tmp_path):
    row = {"input_ids": torch.arange(3, 12), "labels": torch.arange(3, 12)}
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(plain_checkpoint),
        TrainingArguments(
            str(tmp_path / "run"), max_steps=1, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=[row] * 2,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    losses = [
        loss(evaluate(name, ("perplexity",), model_name_or_path=tmp_path / path))
        for name, path in (("one", "run/checkpoint-1"), ("two", "final"))
    ]
    assert losses[0] == losses[1] != loss(evaluate("three", ("perplexity",)))
    with pytest.raises(ValueError, match=r"no `config.json`.*checkpoint-1"):
        evaluate("four", model_name_or_path=tmp_path / "run")


def test_a_table_of_positions_cuts_the_lengths_and_says_so(evaluate, tokenizer, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=2, n_positions=24, bos_token_id=2, eos_token_id=1)
    ).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    metrics = evaluate(model_name_or_path=tmp_path / "gpt2", max_new_tokens=30)
    assert [length["context_length"] for length in metrics["long_text"]] == [16, 24]
    notes = json.loads((tmp_path / "out" / "evaluation.json").read_text())["notes"]
    assert len(notes) == 3 and all("24 positions" in note for note in notes)


def test_a_tinyseek_reports_the_load_of_each_layers_experts(evaluate, tokenizer, tmp_path):
    torch.manual_seed(0)
    TinySeekForCausalLM(
        TinySeekConfig(
            vocab_size=97,
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            q_lora_rank=5,
            kv_lora_rank=5,
            qk_rope_head_dim=4,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=7,
        )
    ).save_pretrained(tmp_path / "tinyseek")
    tokenizer.save_pretrained(tmp_path / "tinyseek")
    metrics = evaluate(model_name_or_path=tmp_path / "tinyseek")
    layers = metrics["perplexity"]["router"]["layers"]
    assert len(layers) == 3 and all(layer["max_load"] >= 1 >= layer["load_entropy"] > 0 for layer in layers)


def test_prompts_are_put_into_the_template(evaluate):
    metrics = evaluate(
        only=("top_predictions",), prompts=["How much?", "{x}"], prompt_template="User: {prompt}\\nAssistant:"
    )
    assert [row["prompt"] for row in metrics["top_predictions"]] == [
        "User: How much?\nAssistant:",
        "User: {x}\nAssistant:",
    ]


def test_chat_applies_the_chat_template(evaluate, plain_checkpoint, tokenizer, tmp_path):
    path = shutil.copytree(plain_checkpoint, tmp_path / "chat")
    evaluate_chat = {"model_name_or_path": path, "prompts": ["Hi"], "chat": "true", "only": ("continuations",)}
    with pytest.raises(ValueError, match="no chat template"):
        evaluate("one", **evaluate_chat)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}({{ m['role'] }}){{ m['content'] }}{% endfor %}:"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    assert evaluate("two", **evaluate_chat)["prompts"] == ["(user)Hi:"]


def test_a_completion_in_the_prompts_file_gives_the_actual_next_token(evaluate, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 3 =", "completion": "5"}) + "\n")
    metrics = evaluate(only=("top_predictions",), prompts_file=path, every_position="false")
    assert metrics["top_predictions"][0]["positions"][-1]["actual"]["text"] == "5"


def test_the_penalty_is_compared_with_none(evaluate):
    both = evaluate("one", ("continuations",))["continuations"]
    assert list(both) == ["greedy", "sampled", "greedy, penalised", "sampled, penalised"]
    none = evaluate("two", ("continuations",), repetition_penalty=1.0)["continuations"]
    assert list(none) == ["greedy", "sampled"] and none["greedy"] == both["greedy"]


def test_brackets_and_bars_in_a_prompt_are_no_markup(evaluate, tmp_path):
    evaluate(only=("top_predictions",), prompts=["a|b", "[/b] <x>"])
    report = (tmp_path / "out" / "evaluation.md").read_text()
    assert "a|b" not in report and "<x>" not in report


def test_an_unknown_key_in_the_yaml_file_is_an_error(evaluate, tmp_path):
    (tmp_path / "settings.yaml").write_text("blok_size: 5\n")
    with pytest.raises(ValueError, match="blok_size"):
        evaluate(config=tmp_path / "settings.yaml")


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("model_name_or_path", "./nowhere", "no folder `./nowhere`"),
        ("dataset_name_or_path", "./nowhere.txt", "no file nowhere.txt"),
        ("prompts_file", "./nowhere.txt", "no file nowhere.txt"),
    ],
)
def test_what_is_missing_is_named(evaluate, option, value, message):
    with pytest.raises(FileNotFoundError, match=message):
        evaluate(**{option: value})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"context_lengths": "16,x"}, r"`context_lengths`.*16,x"),
        ({"context_lengths": "5000"}, r"fewer than the smallest context length, 5000"),
        ({"block_size": 1}, r"`block_size`.*got 1"),
        ({"top_p": 0.0}, r"`top_p`.*0\.0"),
        ({"only": ()}, "All parts"),
        ({"prompts": [""]}, r"Prompt 0 has no tokens"),
        ({"prompts": ["x"], "prompt_template": "User:"}, r"must hold \{prompt\}"),
        ({"base_model": "x"}, r"`base_model` was given.*adapter_config"),
        ({"chat": "true"}, r"need `prompts`"),
    ],
)
def test_bad_settings_are_named(evaluate, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)


def test_empty_text_is_an_error(evaluate, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="holds no text"):
        evaluate(dataset_name_or_path=tmp_path / "empty.txt")


def test_a_failed_evaluation_leaves_nothing(evaluate, tmp_path):
    with pytest.raises(ValueError):
        evaluate(prompts=[""])
    assert not (tmp_path / "out").exists()


def test_weights_cut_short_are_an_error(evaluate, plain_checkpoint, tmp_path):
    path = shutil.copytree(plain_checkpoint, tmp_path / "model")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(OSError, match=r"damaged: model\.safetensors"):
        evaluate(model_name_or_path=path)


def test_weights_that_are_missing_are_an_error(evaluate, plain_checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    path = shutil.copytree(plain_checkpoint, tmp_path / "model")
    model.save_pretrained(path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks weights of Qwen2ForCausalLM, such as `model\.layers\.1\.mlp"):
        evaluate(model_name_or_path=path)


def test_a_checkpoint_without_a_tokenizer_is_an_error(evaluate, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="no tokenizer in"):
        evaluate("one", model_name_or_path=tmp_path / "small")


def test_tokens_that_the_model_does_not_have_are_an_error(evaluate, plain_checkpoint, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="the model has 20 tokens"):
        evaluate(model_name_or_path=tmp_path / "small", tokenizer_name_or_path=plain_checkpoint)
