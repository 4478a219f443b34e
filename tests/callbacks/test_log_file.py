"""The log file: what it holds while a training runs and after a resume."""

import json
import math

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_evidenceflow.callbacks.log_file import LogFileCallback


def log(callback, args, step, **logs):
    callback.on_log(args, TrainerState(global_step=step, epoch=step / 10), TrainerControl(), logs=logs)


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_row_is_on_disk_at_once(tmp_path):
    callback, args = LogFileCallback(), TrainingArguments(output_dir=str(tmp_path))
    log(callback, args, 5, loss=2.5)
    log(callback, args, 7, eval_loss=2.25)
    assert rows(tmp_path) == [{"loss": 2.5, "epoch": 0.5, "step": 5}, {"eval_loss": 2.25, "epoch": 0.7, "step": 7}]


def test_a_number_that_json_cannot_hold_is_a_word(tmp_path):
    log(LogFileCallback(), TrainingArguments(output_dir=str(tmp_path)), 5, loss=math.nan)
    assert rows(tmp_path)[0]["loss"] == "nan"


def test_a_resumed_training_drops_the_rows_after_its_checkpoint(tmp_path):
    callback, args = LogFileCallback(), TrainingArguments(output_dir=str(tmp_path))
    for step in (2, 5, 7):
        log(callback, args, step, loss=1.0)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"loss": 1.0, "st')  # what a kill leaves
    callback.on_train_begin(args, TrainerState(global_step=5), TrainerControl())
    assert [row["step"] for row in rows(tmp_path)] == [2, 5]


def test_only_rank_0_writes(tmp_path):
    state = TrainerState(global_step=5, is_world_process_zero=False)
    LogFileCallback().on_log(TrainingArguments(output_dir=str(tmp_path)), state, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "log.jsonl").exists()
