"""A trainer that logs the parts of its loss."""

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_evidenceflow.recipes.course.shared.logged_parts import LoggedPartsTrainer


class TwoLosses(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x, return_loss=True):
        first, second = (self.weight * x).mean(), (self.weight**2).mean()
        return {"loss": first + second, "first": first, "second": second}


def test_each_entry_of_the_log_has_the_mean_of_the_parts_since_the_last(tmp_path):
    trainer = LoggedPartsTrainer(
        TwoLosses(),
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            logging_steps=2,
            per_device_train_batch_size=3,
            learning_rate=0.1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=[{"x": float(index)} for index in range(12)],
        parts=lambda output, inputs: {name: output[name] for name in ("first", "second")},
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "first" in entry]
    assert [entry["step"] for entry in logged] == [2, 4] and logged[0] != logged[1]
    for entry in logged:
        assert entry["first"] + entry["second"] == pytest.approx(entry["loss"], abs=1e-3)
