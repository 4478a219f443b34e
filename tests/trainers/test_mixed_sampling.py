"""Samples from a mixture of teacher and student, with their log-probabilities."""

import pytest
import torch
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.trainers.mixed_sampling import mixed_logps, sample_mixed


def llama(seed: int, **fields) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY | fields, initializer_range=0.3)).eval()


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
