"""Distillation with temperature, and the scores of students."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes.course.compression.distillation_loss import distillation_loss, soft_target_loss
from hf_evidenceflow.recipes.course.compression.distillation_trainer import SoftTargetConfig, SoftTargetTrainer
from hf_evidenceflow.recipes.course.compression.student_scores import score_student


def llama(seed: int, **fields) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY | fields, initializer_range=0.3)).eval()


# Temperature


def test_the_soft_loss_is_the_plain_formula():
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.tensor([[1, 1, 0], [1, 0, 0]])
    terms = []
    for row, column in ((0, 0), (0, 1), (1, 0)):
        p, q = ((logits[row, column] / 3).softmax(-1).tolist() for logits in (teacher, student))
        terms.append(sum(a * torch.tensor(a / b).log().item() for a, b in zip(p, q)))
    assert soft_target_loss(student, teacher, mask, 3.0).item() == pytest.approx(9 * sum(terms) / 3, rel=1e-5)


def test_the_gradient_keeps_its_size_at_high_temperature():
    torch.manual_seed(0)
    teacher, mask, norms = torch.randn(2, 3, 5), torch.ones(2, 3), []
    for temperature in (50.0, 100.0):
        student = torch.zeros(2, 3, 5, requires_grad=True)
        soft_target_loss(student, teacher, mask, temperature).backward()
        norms.append(student.grad.norm().item())
    # Without T^2 it would fall to a quarter; at high T it is (z_student - z_teacher) / V, whatever T is
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_the_ends_of_the_soft_weight_are_the_text_alone_and_the_teacher_alone():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    labels = torch.tensor([[1, 2, 3, -100], [0, 4, -100, -100]])
    text = F.cross_entropy(student[:, :-1].reshape(-1, 5), labels[:, 1:].reshape(-1), ignore_index=-100)
    taught = soft_target_loss(student[:, :-1], teacher[:, :-1], labels[:, 1:] != -100, 2.0)
    assert distillation_loss(student, teacher, labels, 2.0, 0.0)[0].item() == pytest.approx(text.item())
    assert distillation_loss(student, teacher, labels, 2.0, 1.0)[0].item() == pytest.approx(taught.item())
    mixed = distillation_loss(student, teacher, labels, 2.0, 0.25)[0].item()
    assert mixed == pytest.approx(0.75 * text.item() + 0.25 * taught.item())


def test_tokens_without_a_label_change_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    labels = torch.tensor([[1, 2, 3, -100]])
    before = distillation_loss(student, teacher, labels)[0]
    student[:, 2:], teacher[:, 2:] = 9.0, torch.randn(1, 2, 5)  # logits at 2 would predict the token without a label
    assert torch.equal(distillation_loss(student, teacher, labels)[0], before)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 5\) and \(1, 2, 7\).*one tokenizer"):
        soft_target_loss(torch.ones(1, 2, 5), torch.ones(1, 2, 7), torch.ones(1, 2))


def test_a_soft_weight_above_one_is_refused():
    with pytest.raises(ValueError, match=r"`soft_weight` must be in \[0, 1\], got 1.5"):
        distillation_loss(torch.ones(1, 2, 5), torch.ones(1, 2, 5), torch.ones(1, 2).long(), soft_weight=1.5)


# Trainer


def test_the_soft_target_trainer_takes_the_step_of_its_loss(tmp_path):
    ids = torch.tensor([[3, 4, 5, 6, 7], [7, 6, 5, 4, 3]])
    student, teacher = llama(0), llama(1)
    expected, _ = distillation_loss(student(ids).logits, teacher(ids).logits, ids, 3.0, 0.7)
    config = SoftTargetConfig(
        str(tmp_path), temperature=3.0, soft_weight=0.7, max_steps=1, per_device_train_batch_size=2, report_to="none"
    )
    config.logging_steps, config.disable_tqdm, config.save_strategy = 1, True, "no"
    trainer = SoftTargetTrainer(
        student, teacher, config, train_dataset=[{"input_ids": row, "labels": row} for row in ids]
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)  # logged with 4 digits


# Scores


def test_a_teacher_is_at_no_distance_from_itself(tokenizer):
    teacher, student = llama(1), llama(0)
    prompts = torch.tensor([[3, 4], [5, 6], [7, 8]])
    own = score_student(teacher, teacher, tokenizer, prompts, 5)
    other = score_student(student, teacher, tokenizer, prompts, 5)
    assert own["reverse_kl"]["value"] == own["forward_kl"]["value"] == 0
    assert other["reverse_kl"]["low"] > 0 and other["forward_kl"]["value"] != other["reverse_kl"]["value"]
    assert other["teacher_perplexity"] > own["teacher_perplexity"] > 1
