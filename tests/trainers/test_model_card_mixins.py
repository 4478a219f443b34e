"""The card of a trained model: its snippet runs, its numbers are the run's, and no text breaks it."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hub_round_trip import run_without_package
from huggingface_hub import ModelCard
from peft import LoraConfig
from quiet_training import QUIET
from tiny_tinyseek import tiny_tinyseek
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.report.model_card import CardContent, Sample, write_model_card
from hf_evidenceflow.trainers.completion_trainer import CompletionConfig, CompletionTrainer
from hf_evidenceflow.trainers.ppo_config import PPOConfig
from hf_evidenceflow.trainers.ppo_trainer import PPOTrainer
from hf_evidenceflow.trainers.pretraining_config import PretrainingConfig
from hf_evidenceflow.trainers.pretraining_trainer import PretrainingTrainer


def reward(completions, **kwargs):
    return [float(len(text) % 2) for text in completions]


@pytest.fixture(scope="module", params=["whole", "adapter"])
def trained(request, plain_checkpoint, tmp_path_factory):
    """A trainer that has taken a step and saved its model with the card."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    rows = [{"prompt": prompt, "answer": "3"} for prompt in ("Tom has 3", "Ann?", '7+2="', "d")]
    args = HRPOConfig(
        str(folder),
        **QUIET,
        per_device_train_batch_size=4,
        num_generations=2,
        max_steps=1,
        max_completion_length=6,
        save_strategy="no",
        lr_thinking_projection=0.0123,
    )
    trainer = HRPOTrainer(
        load_thinking_model(plain_checkpoint) if request.param == "whole" else plain_checkpoint,
        reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
        peft_config=LoraConfig(target_modules=["q_proj"], r=3) if request.param == "adapter" else None,
    )
    trainer.model_card_dataset = "openai/gsm8k"
    trainer.model_card_notes = "## Further\n\nby hand"
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return trainer


SMALL = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 1, "save_strategy": "no"}


def train_and_save(trainer):
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return trainer


def run_snippet(snippet):
    """Runs a snippet here; returns its variables."""
    scope = {}
    exec(snippet, scope)
    return scope


def card_of(trainer):
    return ModelCard.load(Path(trainer.args.output_dir) / "README.md")


def snippets(trainer):
    return re.findall(r"```python\n(.*?)\n```", card_of(trainer).text, re.S)


def test_the_snippet_runs(trained, capsys):
    scope = run_snippet(snippets(trained)[0])
    assert scope["model"].config.model_type == "thinking_qwen2"
    assert scope["output"].shape[1] > scope["inputs"]["input_ids"].shape[1]
    assert "trust_remote_code" not in snippets(trained)[0]


def test_the_code_of_a_whole_model_is_saved_and_shown(trained):
    whole = "adapter" not in trained.args.output_dir
    assert any("trust_remote_code=True" in snippet for snippet in snippets(trained)) == whole


def test_metadata_settings_numbers_and_notes_are_there(trained):
    card = card_of(trained)
    assert card.data.datasets == ["openai/gsm8k"] and card.data.pipeline_tag == "text-generation"
    assert {"hrpo", "hf_evidenceflow"} <= set(card.data.tags)
    for text in ("`thinking_mode` | projection", "0.0123", "Graders: `reward`", "2505.18454", "Versions: python"):
        assert text in card.text
    assert "completions of the training (2 prompts, sampled)" in card.text and "None" not in card.text.split("##")[0]
    assert card.text.rstrip().endswith("by hand")


def test_samples_come_with_their_latent_weight(trained):
    weights = trained._logs["extra"]["latent_weight"]
    assert len(weights) == len(trained._logs["completion"]) and all(0 <= weight < 1 for weight in weights)
    assert card_of(trained).text.count("latent weight") == 3
    assert f"latent weight {weights[-1]:.1%} a token" in card_of(trained).text


def test_no_completion_ends_its_block_or_the_front_matter(tmp_path):
    hostile = "```\n---\nlicense: mit\n---\n{{ card_data }} ````"
    content = CardContent("t", "s", "pass", samples=[Sample("p", hostile, 1.0)], metadata={"license": "apache-2.0"})
    text = write_model_card(tmp_path, content).read_text()
    card = ModelCard(text)
    assert card.data.license == "apache-2.0" and hostile in text and "`````text" in text


def test_a_pretrained_model_has_a_card_with_its_loss(tmp_path, tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    )
    rows = [{"input_ids": list(range(3, 10)), "labels": list(range(3, 10))} for _ in range(4)]
    args = PretrainingConfig(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = PretrainingTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    metrics = trainer.final_metrics()
    trainer.save_model()
    trainer.create_model_card()
    assert f"Held-out perplexity: {metrics['eval_perplexity']:.4g}" in card_of(trainer).text
    assert run_snippet(snippets(trainer)[0])["model"].config.model_type == "llama"
    assert len(snippets(trainer)) == 1  # transformers has the code


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["whole"], indirect=True)
def test_the_second_snippet_runs_without_the_package(trained, tmp_path):
    run_without_package(snippets(trained)[1], tmp_path)


@pytest.mark.slow
def test_a_pretrained_model_of_ours_runs_without_the_package(tmp_path, tokenizer):
    rows = [{"input_ids": list(range(3, 10)), "labels": list(range(3, 10))} for _ in range(4)]
    args = PretrainingConfig(str(tmp_path / "model"), **SMALL)
    model = tiny_tinyseek()
    trainer = train_and_save(
        PretrainingTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    )
    run_without_package(snippets(trainer)[1], tmp_path)


def test_a_pretrained_model_comes_without_its_code_if_told_so(tmp_path, tokenizer):
    rows = [{"input_ids": list(range(3, 10)), "labels": list(range(3, 10))} for _ in range(4)]
    args = PretrainingConfig(str(tmp_path), save_hub_code=False, **SMALL)
    trainer = PretrainingTrainer(
        tiny_tinyseek(), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    assert len(snippets(train_and_save(trainer))) == 1 and not list(tmp_path.glob("*.py"))
    assert run_snippet(snippets(trainer)[0])["model"].config.model_type == "tinyseek"


def test_a_ppo_model_has_a_card_with_its_rewards(tmp_path, plain_checkpoint):
    sizes = {"per_device_train_batch_size": 2, "max_completion_length": 4, "gradient_checkpointing": False}
    trainer = PPOTrainer(
        plain_checkpoint,
        reward,
        args=PPOConfig(str(tmp_path), bf16=False, **sizes, **SMALL),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in ("Tom has 3", "Ann?")]),
        processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
    )
    text = card_of(train_and_save(trainer)).text
    assert "trained by PPO" in text and "Graders: `reward`" in text and "latent weight" not in text
    assert run_snippet(snippets(trainer)[0])["model"].config.model_type == "qwen2"


def test_a_fine_tuned_model_has_a_card_with_its_loss(tmp_path, plain_checkpoint):
    rows = Dataset.from_list([{"prompt": "Tom has", "completion": " 3 eggs"}] * 4)
    trainer = CompletionTrainer(
        plain_checkpoint,
        CompletionConfig(str(tmp_path), bf16=False, **SMALL),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(plain_checkpoint),
    )
    trainer.train()
    loss = trainer.final_metrics()["eval_loss"]
    trainer.save_model()
    trainer.create_model_card()
    assert f"Held-out loss: {loss:.4g}" in card_of(trainer).text
    assert run_snippet(snippets(trainer)[0])["model"].config.model_type == "qwen2"
