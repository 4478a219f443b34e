"""LayerDropoutCallback in a real Trainer, next to layer-wise supervision."""

import torch
from tiny_families import tiny_causal_lm, token_ids
from transformers import Trainer, TrainingArguments

from hf_evidenceflow import EvidenceFlowCallback, LayerDropoutCallback


def trained(tmp_path, *callbacks):
    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids(8, 11)]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(tiny_causal_lm("llama"), arguments, train_dataset=rows, callbacks=list(callbacks))
    trainer.train()
    return trainer


def test_it_trains_another_model_logs_and_leaves_no_hook(tmp_path):
    supervision = EvidenceFlowCallback(
        objective="cross_entropy", layer_weights="layer_skip", layer_curriculum="rotational:2", token_fraction=1.0
    )
    plain = trained(tmp_path)
    model = trained(tmp_path, LayerDropoutCallback(0.9), supervision)
    log = model.state.log_history[:2]
    assert all(row["layer_dropout/skipped"] >= 0 for row in log) and log[0] != log[1]
    assert "evidence_flow/layer_1" in log[1] and "evidence_flow/layer_1" not in log[0]
    pairs = zip(plain.model.parameters(), model.model.parameters())
    assert not all(torch.equal(one, other) for one, other in pairs)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
