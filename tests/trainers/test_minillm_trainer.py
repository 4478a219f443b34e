"""MiniLLMTrainer: a step is that of its loss, the student comes nearer, its folders hold what a trainer's do."""

import pytest
import torch
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow import MiniLLMConfig, MiniLLMTrainer, load_thinking_model
from hf_evidenceflow.losses.minillm import minillm_loss
from hf_evidenceflow.trainers import minillm_trainer
from hf_evidenceflow.trainers.minillm_trainer import PromptTextCollator


def llama(seed: int, **fields) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY | fields, initializer_range=0.3)).eval()


def rows(count: int = 8) -> list[dict]:
    return [{"prompt_ids": [3 + i % 4] * (1 + i % 3), "text_ids": [3, 4, 5, 6, 7]} for i in range(count)]


def test_the_collator_pads_prompts_on_the_left():
    batch = PromptTextCollator(0)(
        [{"prompt_ids": [5], "text_ids": [1, 2]}, {"prompt_ids": [6, 7], "text_ids": [3, 4]}]
    )
    assert batch["prompt_ids"].tolist() == [[0, 5], [6, 7]] and batch["prompt_mask"].tolist() == [[0, 1], [1, 1]]


def train_minillm(tmp_path, tokenizer, steps: int, **settings):
    config = MiniLLMConfig(
        str(tmp_path),
        max_steps=steps,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        max_completion_length=6,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    student, teacher = llama(0), llama(1)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    trainer = MiniLLMTrainer(student, teacher, config, train_dataset=rows(), processing_class=tokenizer)
    trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    return trainer


def test_the_loss_of_a_step_is_that_of_the_completions_alone(tmp_path, tokenizer, monkeypatch):
    tokens, mask = torch.tensor([[6, 7, 1], [8, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    logps = torch.tensor([[-2.0, -1.0, -3.0], [-1.0, -2.0, 0.0]])
    monkeypatch.setattr(minillm_trainer, "sample_mixed", lambda *arguments: (tokens, mask, logps))
    student, teacher = llama(0), llama(1)
    config = MiniLLMConfig(str(tmp_path), pretraining_weight=0.5, report_to="none")
    trainer = MiniLLMTrainer(student, teacher, config, train_dataset=rows(2), processing_class=tokenizer)
    batch = PromptTextCollator(0)(rows(2))  # prompts of 1 and 2 tokens
    loss = trainer.compute_loss(student, batch)
    # Each row by itself, without padding, the logits taken by hand
    student_logits, teacher_logits = torch.zeros(2, 3, 97), torch.zeros(2, 3, 97)
    for index, row in enumerate(rows(2)):
        kept = int(mask[index].sum())
        ids, start = torch.tensor([row["prompt_ids"] + tokens[index, :kept].tolist()]), len(row["prompt_ids"]) - 1
        for logits, model in ((student_logits, student), (teacher_logits, teacher)):
            logits[index, :kept] = model(ids).logits[0, start : start + kept]
    expected, _ = minillm_loss(student_logits, teacher_logits, tokens, mask, logps)
    text = student(input_ids=batch["text_ids"], labels=batch["text_ids"]).loss
    assert loss.item() == pytest.approx((expected + 0.5 * text).item(), rel=1e-4)


def test_training_brings_the_student_nearer_to_its_teacher(tmp_path, tokenizer):
    trainer = train_minillm(tmp_path, tokenizer, 20, pretraining_weight=0.0)
    kls = [entry["reverse_kl"] for entry in trainer.state.log_history if "reverse_kl" in entry]
    assert sum(kls[-5:]) < 0.7 * sum(kls[:5])


def test_the_log_holds_the_parts_of_the_loss(tmp_path, tokenizer):
    entry = train_minillm(tmp_path, tokenizer, 1).state.log_history[0]
    assert {"reverse_kl", "reward", "weight", "text_loss", "completion_length"} <= entry.keys()
    assert 1 <= entry["completion_length"] <= 6


def test_a_student_of_another_vocabulary_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="vocabularies of 97 and 99"):
        MiniLLMTrainer(llama(0), llama(1, vocab_size=99), MiniLLMConfig(str(tmp_path)), processing_class=tokenizer)


def test_bad_settings_of_minillm_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`teacher_share` must be in \[0, 1\], got -0.1"):
        MiniLLMConfig(str(tmp_path), teacher_share=-0.1)


def test_the_code_of_a_model_of_ours_and_a_card_are_saved(tmp_path, tokenizer, plain_checkpoint):
    student, teacher = (load_thinking_model(plain_checkpoint, thinking_mode="none") for _ in range(2))
    trainer = MiniLLMTrainer(
        student,
        teacher,
        MiniLLMConfig(str(tmp_path), report_to="none"),
        train_dataset=rows(),
        processing_class=tokenizer,
    )
    trainer.save_model()
    trainer.create_model_card()
    assert (tmp_path / "modeling_thinking_qwen2.py").exists()
    assert "trained by MiniLLM" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, tokenizer):
    def train(folder, checkpoint=None):
        config = MiniLLMConfig(
            str(tmp_path / folder),
            max_steps=4,
            learning_rate=1e-2,
            max_completion_length=5,
            logging_steps=3,
            report_to="none",
            disable_tqdm=True,
            save_steps=2,
        )
        trainer = MiniLLMTrainer(llama(0), llama(1), config, train_dataset=rows(), processing_class=tokenizer)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = train("whole")
    resumed = train("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters()):
        assert torch.equal(one, other)
    logged = [[row["reverse_kl"] for row in t.state.log_history if "reverse_kl" in row] for t in (whole, resumed)]
    assert logged[0] == logged[1]
