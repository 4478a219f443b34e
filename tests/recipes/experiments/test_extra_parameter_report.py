"""The report of what a cross-layer Llama learned."""

import json
import math

import pytest
import torch
from tiny_families import tiny_causal_lm
from tiny_models import TINY

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM, extra_parameters
from hf_evidenceflow.recipes.experiments.extra_parameter_report import (
    parameter_rows,
    parameter_table,
    write_parameter_report,
)


def trained(variant):
    torch.manual_seed(0)
    model = CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant=variant))
    with torch.no_grad():
        for parameter in extra_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_each_parameter_stands_with_its_layer_values_and_init():
    model = trained("v2m3")
    rows = {row.layer: row for row in parameter_rows(model) if row.name == "mlp_residual_weights"}
    assert sorted(rows) == [1, 2]
    expected = model.model.layers[2].mlp_residual_weights.tolist()
    assert rows[2].values == pytest.approx(expected) and rows[2].initial == [1.0, 1.0, 1.0]


def test_softmax_weights_are_given_as_shares():
    shares = [row for row in parameter_rows(trained("v2m3")) if row.name == "share"]
    assert all(sum(row.values) == pytest.approx(1) for row in shares)
    assert shares[0].initial == pytest.approx([0.5, 0.5])


def test_scales_are_multiples_of_llamas():
    model = trained("v4m4")
    attention = model.model.layers[2].self_attn
    a, b = attention.score_a.item(), attention.score_b.item()
    (row,) = [row for row in parameter_rows(model) if row.name == "scale" and row.layer == 2]
    head_size = TINY["hidden_size"] // TINY["num_attention_heads"]
    assert row.values == pytest.approx([math.sqrt(head_size) / (head_size**a * 3**b)], rel=1e-5)
    assert row.initial == pytest.approx([1 / 3], rel=1e-5)


def test_the_report_draws_nothing_random_from_the_global_generator():
    model = trained("v4m5")
    before = torch.random.get_rng_state()
    parameter_rows(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_table_and_files(tmp_path):
    rows = write_parameter_report(trained("v4m6"), tmp_path / "report", "v4m6")
    assert len(parameter_table(rows).splitlines()) == len(rows) + 2
    saved = json.loads((tmp_path / "report" / "parameters.json").read_text())
    assert [row["name"] for row in saved] == [row.name for row in rows]
    assert (tmp_path / "report" / "parameters.png").read_bytes()[:4] == b"\x89PNG"


def test_a_variant_without_parameters_writes_nothing(tmp_path):
    assert write_parameter_report(trained("v2m1"), tmp_path / "report", "v2m1") == []
    assert not (tmp_path / "report").exists()


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="LlamaForCausalLM is no cross-layer Llama"):
        parameter_rows(tiny_causal_lm("llama"))
