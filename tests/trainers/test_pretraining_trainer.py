"""Validation over tokens, schedules, and the check that packed documents stay apart."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.data.packing import TokenRows, pack_rows
from hf_evidenceflow.trainers.document_isolation import check_document_isolation
from hf_evidenceflow.trainers.pretraining_config import PretrainingConfig
from hf_evidenceflow.trainers.pretraining_trainer import PretrainingTrainer, next_token_sums
from hf_evidenceflow.trainers.schedules import warmup_exponential


SIZES = {"vocab_size": 23, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_model(model_class=LlamaForCausalLM, **sizes):
    torch.manual_seed(0)
    if model_class is GPT2LMHeadModel:
        config = GPT2Config(vocab_size=23, n_embd=8, n_layer=2, n_head=2, n_positions=16, initializer_range=0.5)
    else:
        config = LlamaConfig(**(SIZES | {"initializer_range": 0.5} | sizes))
    return model_class(config)


def make_rows(lengths, block_size=7, packing="none"):
    ids = np.random.default_rng(0).integers(2, 23, sum(lengths)).astype(np.int32)
    return pack_rows(ids, np.cumsum(lengths), block_size, packing)


def make_trainer(tmp_path, rows, **settings):
    defaults = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "per_device_eval_batch_size": 2}
    return PretrainingTrainer(
        make_model(), PretrainingConfig(str(tmp_path), **(defaults | settings)), train_dataset=rows, eval_dataset=rows
    )


def test_sums_are_those_of_the_shifted_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    labels[1, 2:] = -100
    sums = next_token_sums(logits, labels)
    for row in range(3):
        valid = labels[row, 1:] != -100
        scores, targets = logits[row, :-1][valid], labels[row, 1:][valid]
        loss = F.cross_entropy(scores, targets, reduction="sum").item()
        right = (scores.argmax(-1) == targets).sum().item()
        assert sums[row].tolist() == pytest.approx([loss, right, valid.sum().item()], rel=1e-6)


def test_logits_in_pieces_give_the_same_sums(monkeypatch):
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    whole = next_token_sums(logits, labels)
    monkeypatch.setattr("hf_evidenceflow.trainers.pretraining_trainer.TOKENS_AT_ONCE", 5)
    assert torch.equal(next_token_sums(logits, labels), whole)


def test_the_validation_loss_is_the_mean_over_all_tokens_at_any_batch_size(tmp_path):
    # Rows of very uneven length, so that a mean of batch means is another number
    rows = make_rows((2, 7, 2, 7, 2))
    first, second = (make_trainer(tmp_path, rows, per_device_eval_batch_size=size) for size in (2, 3))
    metrics = first.evaluate()
    loss = right = tokens = 0
    with torch.no_grad():
        for row in rows:
            logits = first.model(row["input_ids"][None], attention_mask=row["attention_mask"][None]).logits[0, :-1]
            valid = row["labels"][1:] != -100
            loss += F.cross_entropy(logits[valid], row["labels"][1:][valid], reduction="sum").item()
            right += (logits[valid].argmax(-1) == row["labels"][1:][valid]).sum().item()
            tokens += valid.sum().item()
    assert metrics["eval_loss"] == pytest.approx(loss / tokens, rel=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-6)
    assert metrics["eval_accuracy"] == right / tokens
    assert second.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)


def test_validation_data_without_a_token_to_predict_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, make_rows((1, 1)))
    with pytest.raises(ValueError, match="no token to predict"):
        trainer.evaluate()


def test_only_training_is_on_the_clock(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, make_rows((7,) * 4), max_steps=3, eval_steps=1, logging_steps=1)
    now = [0.0]
    monkeypatch.setattr("hf_evidenceflow.callbacks.training_clock.time.perf_counter", lambda: now[0])
    step, evaluate = trainer.training_step, trainer.evaluate

    def slow(function, seconds):
        def wrapped(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(trainer, "training_step", slow(step, 2.0))
    monkeypatch.setattr(trainer, "evaluate", slow(evaluate, 100.0))
    trainer.train()
    assert trainer.clock.seconds == 6.0
    assert [row["train_seconds"] for row in trainer.state.log_history] == [2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 6.0]


def rates(steps, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    schedule = warmup_exponential(optimizer, num_training_steps=steps, **settings)
    return [3.0 * schedule.lr_lambdas[0](step) for step in range(steps)]


def test_warm_up_then_plateau_then_exponential_decay():
    expected = [0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 1.5, 0.75]
    assert rates(8, num_warmup_steps=3, num_stable_steps=2, decay_rate=0.5) == pytest.approx(expected)


def test_the_last_step_has_the_final_ratio_at_any_number_of_steps():
    for steps in (7, 11):
        values = rates(steps, num_warmup_steps=2, final_ratio=0.1)
        assert values[2] == 3.0 and values[-1] == pytest.approx(0.3)
        ratios = [after / before for before, after in pairwise(values[2:])]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_the_trainer_follows_the_schedule(tmp_path):
    trainer = make_trainer(
        tmp_path,
        make_rows((7,) * 5),
        **{"max_steps": 5, "logging_steps": 1, "eval_strategy": "no", "warmup_steps": 2, "learning_rate": 1.0},
        **{"lr_scheduler_type": "warmup_exponential", "exponential_decay_rate": 0.5, "save_strategy": "no"},
    )
    trainer.train()
    logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert logged == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.25])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one of"),
        ({"decay_rate": 0.9, "final_ratio": 0.1}, "exactly one of"),
        ({"decay_rate": 1.5}, "in .0, 1., got 1.5"),
        ({"final_ratio": 0.0}, "in .0, 1., got 0.0"),
        ({"final_ratio": 0.1, "num_stable_steps": 3}, "take 5 of 6 steps"),
    ],
)
def test_impossible_schedules_are_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        rates(6, num_warmup_steps=2, **settings)


def test_stock_schedules_stay_available(tmp_path):
    config = PretrainingConfig(
        str(tmp_path), lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, use_cpu=True
    )
    assert config.lr_scheduler_type == "cosine_with_min_lr"


@pytest.mark.parametrize("model_class", [LlamaForCausalLM, GPT2LMHeadModel])
def test_models_that_keep_documents_apart_pass(model_class):
    check_document_isolation(make_model(model_class), make_rows((3, 4, 2, 5), packing="documents"))


def test_a_model_that_sees_other_documents_is_found():
    model = make_model()
    forward = model.model.forward
    # With a mask of its own, transformers does not look at the positions
    model.model.forward = lambda *args, **kwargs: forward(
        *args, **(kwargs | {"attention_mask": torch.ones_like(kwargs["input_ids"])})
    )
    with pytest.raises(ValueError, match="see each other"):
        check_document_isolation(model, make_rows((3, 4, 2, 5), packing="documents"))


def test_rows_of_one_document_need_no_check():
    rows = TokenRows(input_ids=np.zeros((2, 3), dtype=np.int32), position_ids=np.tile(np.arange(3), (2, 1)))
    check_document_isolation(None, rows)
