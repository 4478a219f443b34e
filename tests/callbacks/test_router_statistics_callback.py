"""Router statistics in a Trainer's log."""

import pytest
from matplotlib.figure import Figure
from tiny_families import tiny_causal_lm, token_ids
from tiny_tinyseek import tiny_tinyseek
from transformers import Trainer, TrainingArguments

from hf_evidenceflow import RouterStatisticsCallback
from hf_evidenceflow.report.run_curves import plot_run_curves


def train(model, tmp_path, resume=None, **arguments):
    rows = [{"input_ids": row, "labels": row} for row in token_ids(8, 6)]
    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        **arguments,
    }
    callback = RouterStatisticsCallback()
    trainer = Trainer(model, TrainingArguments(**settings), train_dataset=rows, callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return [row for row in trainer.state.log_history if "loss" in row]


def test_each_log_has_the_statistics_and_no_hook_stays(tmp_path):
    model = tiny_tinyseek()
    for row in train(model, tmp_path, gradient_accumulation_steps=2):
        assert 1 <= row["router_max_load"] <= 7 / 3 + 1e-6
        assert 0 < row["router_load_entropy"] <= 1
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_statistics_do_not_change_the_training(tmp_path):
    logged = train(tiny_tinyseek(), tmp_path / "with")
    rows = [{"input_ids": row, "labels": row} for row in token_ids(8, 6)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "without"),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(tiny_tinyseek(), arguments, train_dataset=rows)
    trainer.train()
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == [row["loss"] for row in logged]


def test_a_log_row_counts_also_what_came_before_the_checkpoint(tmp_path):
    settings = {"max_steps": 4, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    whole = train(tiny_tinyseek(), tmp_path, **settings)
    resumed = train(tiny_tinyseek(), tmp_path, resume=str(tmp_path / "checkpoint-2"), **settings)
    names = ("router_max_load", "router_load_entropy", "router_dead_experts", "router_balance")
    assert [resumed[0][name] for name in names] == [whole[0][name] for name in names]


def test_a_dense_model_is_refused_when_training_begins(tmp_path):
    with pytest.raises(ValueError, match="has no module `experts`"):
        train(tiny_causal_lm("llama"), tmp_path)


def test_the_statistics_of_a_run_are_drawn_with_its_curves(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))
    )
    logged = train(tiny_tinyseek(), tmp_path, max_steps=4)
    assert all(1 <= row["router_effective_experts"] <= 7 for row in logged)
    plot_run_curves({"run": logged}, tmp_path / "curves.png")
    panels = {axes.get_title("left"): axes for axes in figures[0].axes}
    for title, key in (
        ("Effective experts", "router_effective_experts"),
        ("Experts without a token", "router_dead_experts"),
    ):
        assert list(panels[title].lines[0].get_ydata()) == [row[key] for row in logged]
    assert "Balance of the experts (published: Lexp)" in panels
