"""Distillation with temperature, and MiniLLM's reverse KL, sampling and trainer."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.losses.minillm import (
    future_rewards,
    importance_weights,
    minillm_loss,
    reverse_kl,
    token_logps,
)
from hf_evidenceflow.recipes.course.compression.distillation_loss import distillation_loss, soft_target_loss
from hf_evidenceflow.recipes.course.compression.distillation_trainer import SoftTargetConfig, SoftTargetTrainer
from hf_evidenceflow.recipes.course.compression.student_scores import score_student
from hf_evidenceflow.trainers.minillm_config import MiniLLMConfig
from hf_evidenceflow.trainers.minillm_trainer import MiniLLMTrainer, PromptTextCollator
from hf_evidenceflow.trainers.mixed_sampling import mixed_logps, sample_mixed


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


# MiniLLM's gradient


V = 3


class Table(torch.nn.Module):
    """A distribution over two tokens: logits of the first, and of the second for each first."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(V, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(V, V, dtype=torch.float64))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.first.expand(len(tokens), V), self.second[tokens[:, 0]]], dim=1)  # [B, 2, V]


def enumerated(student: Table, teacher: Table):
    """All completions of two tokens, with their log-probabilities under both."""
    tokens = torch.tensor(list(itertools.product(range(V), repeat=2)))  # [9, 2]
    logps = [
        model.logits(tokens).log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2)) for model in (student, teacher)
    ]
    return tokens, *logps


def gradients(student: Table) -> torch.Tensor:
    gradient = torch.cat([student.first.grad, student.second.grad.flatten()])
    student.zero_grad()
    return gradient


def test_the_expected_policy_gradient_is_that_of_the_exact_reverse_kl():
    student, teacher = Table(0), Table(1)
    tokens, logq, logp = enumerated(student, teacher)
    (logq.exp() * (logq - logp)).sum().backward()
    exact = gradients(student)
    probabilities, mask = logq.exp().detach(), torch.ones(1, 2)
    for row, probability in zip(tokens, probabilities):
        drawn = row[None]
        loss, _ = minillm_loss(student.logits(drawn), teacher.logits(drawn), drawn, mask, length_normalized=False)
        (probability * 2 * loss).backward()  # the loss is the mean of two tokens
    torch.testing.assert_close(gradients(student), exact, atol=1e-6, rtol=1e-5)  # the functions work in float32


def test_the_part_of_the_next_token_alone_is_not_the_gradient():
    student, teacher = Table(0), Table(1)
    tokens, logq, logp = enumerated(student, teacher)
    (logq.exp() * (logq - logp)).sum().backward()
    exact = gradients(student)
    kl = reverse_kl(student.logits(tokens), teacher.logits(tokens), torch.ones(9, 2))
    (logq.exp().detach() * kl.sum(1)).sum().backward()
    assert (gradients(student) - exact).norm() > 0.05 * exact.norm()


def test_weighted_samples_of_the_mixture_have_the_student_expectation():
    student, teacher = Table(0), Table(1)
    tokens, _, _ = enumerated(student, teacher)
    mixture = mixed_logps(student.logits(tokens), teacher.logits(tokens), 0.4)
    sampling = mixture.gather(-1, tokens[..., None])[..., 0].detach()  # [9, 2]
    logits, mask = (student.logits(tokens), teacher.logits(tokens)), torch.ones(9, 2)
    student_logps = token_logps(logits[0], tokens)
    weights = importance_weights(student_logps, sampling, mask, cumulative=True)
    kl = reverse_kl(*logits, mask)
    expected = (student_logps.sum(1).exp()[:, None] * kl).sum()
    drawn = (sampling.sum(1).exp()[:, None] * weights * kl).sum()
    torch.testing.assert_close(drawn, expected.to(drawn.dtype), rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights, importance_weights(student_logps, sampling, mask))


def test_the_ratio_of_a_token_is_its_own():
    student_logps = torch.tensor([[-1.0, -2.0, -3.0]])
    sampling, mask = torch.tensor([[-1.5, -1.0, 7.0]]), torch.tensor([[1, 1, 0]])
    torch.testing.assert_close(
        importance_weights(student_logps, sampling, mask), torch.tensor([[0.5, -1.0, 0.0]]).exp()
    )
    torch.testing.assert_close(
        importance_weights(student_logps, sampling, mask, cumulative=True), torch.tensor([[0.5, -0.5, -0.5]]).exp()
    )


def test_later_rewards_are_summed_or_averaged_over_tokens_that_count():
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert future_rewards(rewards, mask, length_normalized=False).tolist() == [[14, 12, 8, 0], [2, 0, 0, 0]]
    assert future_rewards(rewards, mask)[0].tolist() == pytest.approx([14 / 3, 6, 8, 0])
    assert future_rewards(rewards, mask)[1].tolist() == [2, 0, 0, 0]


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    tokens, mask = torch.randint(5, (2, 3)), torch.ones(2, 3)
    loss, parts = minillm_loss(logits, logits.detach().clone(), tokens, mask)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and parts["reward"] == 0
    assert logits.grad.abs().max() < 1e-6


def test_padding_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    student, teacher, sampling = torch.randn(2, 5, 7), torch.randn(2, 5, 7), -torch.rand(2, 5)
    tokens, results = torch.randint(7, (2, 5)), []
    for rubbish in (None, 50.0, float("inf"), float("nan")):
        ours, theirs, drawn, ids, pad = student.clone(), teacher.clone(), sampling.clone(), tokens.clone(), mask == 0
        if rubbish is not None:
            for logits, column in ((ours, 2), (theirs, 4)):
                logits[..., column] = logits[..., column].masked_fill(pad, rubbish)
            drawn[pad], ids[pad] = rubbish, 3
        ours.requires_grad_()
        loss, _ = minillm_loss(ours, theirs, ids, mask, drawn)
        loss.backward()
        results.append((loss.item(), ours.grad))
        assert not ours.grad[pad].any()
    # Rows with less padding have the same mean
    cut, _ = minillm_loss(student[:, :3], teacher[:, :3], tokens[:, :3], mask[:, :3], sampling[:, :3])
    assert cut.item() == pytest.approx(results[0][0], rel=1e-5)
    for loss, gradient in results[1:]:
        assert loss == results[0][0] and torch.equal(gradient, results[0][1])


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\), \(2, 3, 5\) and \(2, 4\)"):
        reverse_kl(torch.ones(2, 3, 5), torch.ones(2, 3, 5), torch.ones(2, 4))


# Sampling


def test_the_mixture_is_that_of_probabilities():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    expected = 0.3 * teacher.softmax(-1) + 0.7 * student.softmax(-1)
    torch.testing.assert_close(mixed_logps(student, teacher, 0.3).exp(), expected)
    with pytest.raises(ValueError, match=r"`teacher_share` must be in \[0, 1\], got 2"):
        mixed_logps(student, teacher, 2)


def test_samples_carry_the_log_probability_that_they_were_drawn_with():
    student, teacher = llama(0, vocab_size=7), llama(1, vocab_size=7, hidden_size=16, num_hidden_layers=2)
    # Two prompts of different lengths, padded on the left
    ids, mask = torch.tensor([[0, 0, 3], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    torch.manual_seed(3)
    tokens, kept, logps = sample_mixed(student, teacher, ids, mask, 0.4, 9, eos_token_id=1, pad_token_id=0)
    for row in range(2):
        whole = torch.cat([ids[row][mask[row].bool()], tokens[row][kept[row].bool()]])[None]
        length = int(kept[row].sum())
        logits = [model(whole).logits[:, -length - 1 : -1] for model in (student, teacher)]
        expected = mixed_logps(*logits, 0.4)[0].gather(-1, tokens[row, :length, None])[:, 0]
        torch.testing.assert_close(logps[row, :length], expected, atol=1e-5, rtol=1e-4)


def test_the_end_of_sequence_counts_and_padding_follows_it():
    student, teacher = llama(0, vocab_size=5), llama(1, vocab_size=5)
    torch.manual_seed(0)
    ids = torch.full((40, 2), 3)
    tokens, mask, _ = sample_mixed(student, teacher, ids, torch.ones_like(ids), 0.0, 11, 1, 0)
    ended = 0
    for row, kept in zip(tokens.tolist(), mask.tolist()):
        length = sum(kept)
        assert kept == [1] * length + [0] * (len(kept) - length)
        if length < len(row):
            ended += 1
            assert row[length - 1] == 1 and row[length:] == [0] * (len(row) - length)
        assert 1 not in row[: length - 1]
    assert ended > 5


def test_without_a_share_of_the_teacher_samples_are_the_students():
    student, other = llama(0, vocab_size=7), llama(2, vocab_size=7)
    ids, mask = torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.long)
    drawn = []
    for teacher in (student, other):
        torch.manual_seed(5)
        drawn.append(sample_mixed(student, teacher, ids, mask, 0.0, 9, 1, 0)[0])
    assert torch.equal(*drawn)


# Trainers


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
    from hf_evidenceflow.trainers import minillm_trainer

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
