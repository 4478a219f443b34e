"""Pages of rollouts in training: when they are written, of which rows, and that the run does not notice."""

import pytest
import torch
from datasets import Dataset
from quiet_training import STEP_BY_STEP

from hf_evidenceflow import HRPOConfig, HRPOTrainer, load_thinking_model
from hf_evidenceflow.callbacks import thought_pages


@pytest.fixture
def train(plain_checkpoint, tokenizer, tmp_path):
    def train(mode="projection", **overrides):
        torch.manual_seed(5)
        settings = {
            **STEP_BY_STEP,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "logging_steps": 2,
            "max_completion_length": 5,
            "temperature": 1.0,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "beta": 0.0,
            "seed": 3,
        }
        trainer = HRPOTrainer(
            load_thinking_model(plain_checkpoint, thinking_mode=mode),
            lambda completions, **kwargs: [float(len(set(text))) for text in completions],
            args=HRPOConfig(str(tmp_path), **(settings | overrides)),
            train_dataset=Dataset.from_list([{"prompt": "Tom has 3", "answer": "3"}] * 8),
            processing_class=tokenizer,
        )
        trainer.train()
        return trainer

    return train


def test_the_first_rollout_after_each_log_gets_a_page_and_the_run_stays_what_it_is(train, tmp_path, monkeypatch):
    traces, write = [], thought_pages.write_thoughts_page
    monkeypatch.setattr(thought_pages, "write_thoughts_page", lambda t, *args: traces.append(t) or write(t, *args))
    with_pages = train(thought_pages=2)
    pages = sorted((tmp_path / "thoughts").iterdir())
    assert [page.name for page in pages] == ["step_000000.html", "step_000002.html"]
    assert [len(each) for each in traces] == [2, 2]
    for trace in (trace for each in traces for trace in each):
        assert trace.prompt == "Tom has 3" and trace.answer == "3" and trace.lead == "#### "
        assert 1 <= len(trace.tokens) <= 5 and trace.tokens[0].thinks and 0 < trace.tokens[0].gate < 1
    weights = [with_pages.model.state_dict(), train().model.state_dict()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_where_nothing_thinks_pages_are_refused(train):
    with pytest.raises(ValueError, match="`thought_pages=1`: with `thinking_mode='none'` there are no thoughts"):
        train("none", thought_pages=1)
