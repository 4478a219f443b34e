"""The picture of a target mask, and that a released block is the one that training pulls."""

import torch
from tiny_families import tiny_causal_lm, token_ids

from hf_evidenceflow import evidence_flow
from hf_evidenceflow.report.target_mask import distances_by_block, plot_target_mask


def test_the_diagonal_is_what_the_masked_loss_trains(tmp_path):
    model, ids = tiny_causal_lm("llama").train(), token_ids(3, 7)
    with evidence_flow(model, objective="mse", target_mask=True) as flow:
        model(input_ids=ids, labels=ids).loss.backward()
    terms = flow.log.pop()
    distances = distances_by_block(model, ids, [0, 1, 2])
    own = torch.tensor([terms[f"evidence_flow/layer_{layer}"] for layer in range(3)])
    torch.testing.assert_close(distances.diagonal(), own)
    assert plot_target_mask(distances, [0, 1, 2], tmp_path / "mask.png").stat().st_size > 5_000
