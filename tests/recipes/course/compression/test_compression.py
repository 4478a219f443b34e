"""LLM.int8(), NF4, storage, QAT and QLoRA of the compression recipe, and the recipe itself."""

import copy
import importlib.util
import json

import pytest
import torch
from repository import RECIPES
from tiny_models import TINY
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_evidenceflow.recipes.course.compression.compression_plots import compression_rows, plot_compression
from hf_evidenceflow.recipes.course.compression.compression_tables import compression_tables
from hf_evidenceflow.recipes.course.compression.int8_outliers import (
    Int8Linear,
    int8_linear,
    outlier_columns,
    quantize_vectors,
    replace_linears,
)
from hf_evidenceflow.recipes.course.compression.layer_errors import int8_layer_errors
from hf_evidenceflow.recipes.course.compression.nf4 import (
    bits_per_weight,
    dequantize_blockwise,
    nf4_codebook,
    quantize_blockwise,
    relative_error,
    uniform_int4_codebook,
)
from hf_evidenceflow.recipes.course.compression.planted_outliers import plant_outliers
from hf_evidenceflow.recipes.course.compression.qat import convert_qat, intx_config, prepare_qat, quantize_intx
from hf_evidenceflow.recipes.course.compression.qlora import add_lora, frozen_weights, load_4bit
from hf_evidenceflow.recipes.course.compression.storage import linear_bits, model_bytes, tensor_bytes
from hf_evidenceflow.recipes.course.compression.weight_errors import four_bit_codebooks, weight_errors
from hf_evidenceflow.recipes.course.compression.weight_plots import plot_weights, softened
from hf_evidenceflow.recipes.course.shared import recipe as recipe_module
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows


RECIPE = RECIPES / "course" / "compression" / "run.py"
# bitsandbytes' kernels on CPU take multiples of 64 only
LLAMA = TINY | {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, initializer_range=0.2)).eval()


@pytest.fixture
def product():
    """Activations with outliers in the columns 2 and 11, and a weight whose largest values stand elsewhere."""
    torch.manual_seed(0)
    activations, weight = torch.randn(5, 13), torch.randn(7, 13)
    activations[:, 2], activations[:, 11] = 40 + torch.randn(5), -60 + torch.randn(5)
    weight[:, 4] = 30.0
    return activations, weight, activations @ weight.T


# LLM.int8()


def test_rows_in_int8_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    rows = torch.randn(3, 7)
    codes, largest = quantize_vectors(rows)
    for row in range(3):
        expected = max(abs(value) for value in rows[row].tolist())
        assert largest[row].item() == pytest.approx(expected)
        assert codes[row].tolist() == [round(value * 127 / expected) for value in rows[row].tolist()]


def test_outlier_columns_are_found_on_the_activations_not_on_the_weight(product):
    activations, weight, _ = product
    assert outlier_columns(activations, 6.0).tolist() == [2, 11]
    assert outlier_columns(weight, 6.0).tolist() == [4]
    layer = nn.Linear(13, 7, bias=False)
    layer.weight.data = weight
    quantized = Int8Linear(layer, 6.0)
    quantized(activations)
    assert quantized.split_share == pytest.approx(2 / 13)
    quantized(torch.ones(3, 13))
    assert quantized.split_share == pytest.approx(1 / 13)  # of the mean call: the columns are sought anew in each


def test_one_activation_at_the_threshold_makes_a_column_an_outlier():
    activations = torch.tensor([[5.9, 0.0, -6.0], [0.0, 0.0, 0.1]])
    assert outlier_columns(activations, 6.0).tolist() == [2]
    assert outlier_columns(activations, None).tolist() == []


def test_the_split_beats_int8_alone_on_activations_with_outliers(product):
    activations, weight, exact = product
    quantized = quantize_vectors(weight)
    columns = outlier_columns(activations, 6.0)
    plain, split = (int8_linear(activations, *quantized, part, weight) for part in (columns[:0], columns))
    assert relative_error(exact, split) < relative_error(exact, plain) / 3


def test_without_outliers_the_split_changes_nothing(product):
    _, weight, _ = product
    activations = torch.randn(5, 13).clamp(-5, 5)
    layer = nn.Linear(13, 7)
    layer.weight.data = weight
    assert torch.equal(Int8Linear(layer, 6.0)(activations), Int8Linear(layer, None)(activations))


def test_the_product_is_that_of_a_plain_loop(product):
    activations, weight, _ = product
    columns = [2, 11]
    codes, largest = quantize_vectors(weight)
    ours = int8_linear(activations, codes, largest, torch.tensor(columns), weight)
    for row in range(5):
        rest = [0.0 if at in columns else value for at, value in enumerate(activations[row].tolist())]
        top = max(map(abs, rest))
        row_codes = [round(value * 127 / top) for value in rest]
        for out in range(7):
            whole = sum(a * b for a, b in zip(row_codes, codes[out].tolist()))
            expected = whole * top * largest[out].item() / 127**2
            expected += sum(activations[row, at].item() * weight[out, at].item() for at in columns)
            assert ours[row, out].item() == pytest.approx(expected, rel=1e-4, abs=1e-3)  # float32, terms of up to 1800


def test_with_int8_weights_for_the_outliers_the_product_is_bitsandbytes(product):
    import bitsandbytes  # noqa: F401

    activations, weight, _ = product
    codes, largest = quantize_vectors(weight)
    columns = outlier_columns(activations, 6.0)
    row_codes, row_largest, found = torch.ops.bitsandbytes.int8_vectorwise_quant(activations.clone(), 6.0)
    assert torch.equal(found, columns)
    theirs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        activations, row_codes, codes, row_largest, largest, columns
    )
    # Each entry of these columns is an outlier, so that the scales of the rows agree
    torch.testing.assert_close(int8_linear(activations, codes, largest, columns), theirs, rtol=1e-5, atol=1e-3)


def test_an_int8_layer_keeps_shape_and_bias():
    torch.manual_seed(0)
    layer = nn.Linear(13, 7)
    hidden = torch.randn(2, 3, 13)
    torch.testing.assert_close(Int8Linear(layer)(hidden), layer(hidden), atol=0.03, rtol=0)  # steps of 1/127


def test_planted_outliers_change_no_output_and_are_seen_behind_the_norm():
    model = llama()
    ids = torch.arange(15).reshape(3, 5)
    before = model(ids).logits
    plain = int8_layer_errors(model, ids, 6.0)
    plant_outliers(model, 50.0, channels=3)
    torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=1e-4)
    planted = int8_layer_errors(model, ids, 6.0)
    assert plain["columns"] < 0.05 and planted["columns"] > plain["columns"] + 2 / 64
    assert planted["plain"] > 3 * plain["plain"]
    assert planted["split"] < planted["split_int8_weight"] < planted["plain"]


def test_outliers_cannot_be_planted_in_a_model_of_other_names():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=7, n_embd=4, n_layer=1, n_head=2, n_positions=5))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has others. Set `outlier_factor` to 1"):
        plant_outliers(model, 20.0)


def test_the_readout_is_not_replaced():
    model = replace_linears(llama(), lambda layer: Int8Linear(layer, None))
    assert isinstance(model.lm_head, nn.Linear)
    assert not any(isinstance(module, nn.Linear) for module in model.model.modules())


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(ValueError, match="`threshold` must be above 0, got 0"):
        Int8Linear(nn.Linear(3, 2), 0)


# NF4


def test_the_values_of_nf4_are_bitsandbytes():
    import bitsandbytes.functional as functional

    theirs = functional.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(nf4_codebook(), theirs, atol=1e-6, rtol=0)  # theirs are printed in float32


def test_nf4_has_16_values_with_an_exact_zero_between_7_and_8():
    values = nf4_codebook()
    assert len(values.unique()) == 16 and (values.diff() > 0).all()
    assert (values < 0).sum() == 7 and (values == 0).sum() == 1
    assert values[0] == -1 and values[-1] == 1


def test_each_weight_becomes_the_nearest_value_of_its_block():
    torch.manual_seed(0)
    weights, codebook = torch.randn(6, 5), nf4_codebook()
    codes, scales = quantize_blockwise(weights, codebook, 3)
    back = dequantize_blockwise(codes, scales, codebook, weights.shape)
    flat = weights.flatten().tolist()
    for at, value in enumerate(flat):
        scale = max(map(abs, flat[at // 3 * 3 : at // 3 * 3 + 3]))
        nearest = min(codebook.tolist(), key=lambda one: abs(one - value / scale))
        assert back.flatten()[at].item() == pytest.approx(nearest * scale, abs=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_blocks_are_those_of_bitsandbytes(kind):
    import bitsandbytes.functional as functional

    torch.manual_seed(0)
    weights = torch.randn(3, 128)
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(weights, blocksize=64, quant_type=kind))
    codebook = four_bit_codebooks()[kind.upper()]
    ours = dequantize_blockwise(*quantize_blockwise(weights, codebook), codebook, weights.shape)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_block_of_zeros_stays_zero():
    codebook = nf4_codebook()
    codes, scales = quantize_blockwise(torch.zeros(2, 64), codebook)
    assert not dequantize_blockwise(codes, scales, codebook, (2, 64)).any()


@pytest.mark.parametrize(("double", "expected"), [(False, 4.5), (True, 4.127)])
def test_the_bits_a_weight_are_measured_on_the_state(double, expected):
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(1024, 2048, bias=False, quant_type="nf4", compress_statistics=double)
    layer = layer.to("cpu")
    weight = bnb.nn.Params4bit(torch.randn(2048, 1024), quant_type="nf4", compress_statistics=double).to("cpu")
    layer.weight = weight if weight.quant_state is not None else weight._quantize("cpu")
    assert linear_bits(nn.Sequential(layer)) == pytest.approx(expected, abs=5e-4)
    assert bits_per_weight(double_block_size=256 if double else None) == pytest.approx(expected, abs=5e-4)


def test_nf4_is_best_on_normal_weights_and_on_those_of_a_model():
    errors = weight_errors(llama())
    for kind in ("normal", "trained"):
        assert errors["NF4"][kind] < errors["int4"][kind] < errors["FP4"][kind]


def test_nf4_is_not_best_on_evenly_spread_weights():
    weights = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nf4, int4 = (
        relative_error(weights, dequantize_blockwise(*quantize_blockwise(weights, codebook), codebook, weights.shape))
        for codebook in (nf4_codebook(), uniform_int4_codebook())
    )
    assert int4 < nf4


def test_weights_that_fill_no_blocks_are_refused():
    with pytest.raises(ValueError, match="15 weights are no whole number of blocks of 64"):
        quantize_blockwise(torch.ones(3, 5), nf4_codebook())


def test_shared_weights_count_once():
    model = llama()
    plain = model_bytes(model)
    model.lm_head.weight = model.model.embed_tokens.weight
    assert plain - model_bytes(model) == tensor_bytes(model.lm_head.weight) == 97 * 64 * 4


# QLoRA


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(path)
    return path


def test_qlora_trains_its_matrices_and_leaves_the_base_unchanged(saved):
    model = add_lora(load_4bit(saved), rank=2).train()
    before = frozen_weights(model)
    ids = torch.arange(20).reshape(4, 5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    after = frozen_weights(model)
    assert losses[-1] < losses[0] - 0.1
    assert any(tensor.dtype == torch.uint8 for tensor in before.values())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert len(trained) == 2 * 7 * 2 and sum(parameter.numel() for parameter in trained) < 6000


def test_a_4_bit_model_comes_back_from_safetensors(saved, tmp_path):
    model = load_4bit(saved)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(15).reshape(3, 5)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert linear_bits(load_4bit(saved)) < linear_bits(load_4bit(saved, double_quant=False)) == 4.5


def test_a_width_that_bitsandbytes_gets_wrong_on_cpu_is_refused(tmp_path):
    import bitsandbytes.functional as functional

    torch.manual_seed(0)
    weights = torch.randn(14, 96)
    back = functional.dequantize_4bit(*functional.quantize_4bit(weights, blocksize=64, quant_type="nf4"))
    assert relative_error(weights, back) > 0.15  # where 0.09 is due; once this fails, the refusal can go
    LlamaForCausalLM(LlamaConfig(**LLAMA | {"hidden_size": 96})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 96 inputs. On CPU bitsandbytes gives wrong weights"):
        load_4bit(tmp_path)


def test_an_unknown_4_bit_type_is_refused(saved):
    with pytest.raises(ValueError, match="'nf4' or 'fp4', got 'nf5'"):
        load_4bit(saved, "nf5")


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("bitsandbytes", lambda: quantize_vectors(torch.ones(2, 3))),
        ("bitsandbytes", lambda: load_4bit("nowhere")),
        ("torchao", lambda: intx_config(4, 32)),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, call):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(recipe_module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"needs {package}, which is not installed.*\[course\]"):
        call()


# Quantisation-aware training


def test_converted_is_what_was_prepared_and_trained():
    model, ids = prepare_qat(llama(), 3, 32), torch.arange(15).reshape(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)
    prepared = model(ids).logits
    converted = convert_qat(model, 3, 32)(ids).logits
    # The same rounding in another order of operations: float32 noise, far below a step of the grid
    torch.testing.assert_close(converted, prepared, atol=1e-4, rtol=1e-4)


def test_prepared_is_rounded_and_rounded_is_few_values():
    model, ids = llama(), torch.arange(15).reshape(3, 5)
    plain = model(ids).logits
    prepared, rounded = prepare_qat(copy.deepcopy(model), 2, 32), quantize_intx(copy.deepcopy(model), 2, 32)
    torch.testing.assert_close(prepared(ids).logits, rounded(ids).logits, atol=1e-4, rtol=1e-4)
    assert (plain - rounded(ids).logits).abs().mean() > 0.1
    group = rounded.model.layers[1].self_attn.q_proj.weight.dequantize()[3, :32]
    assert len(group.unique()) <= 4


def test_the_readout_is_not_rounded():
    model = quantize_intx(llama(), 2, 32)
    assert torch.equal(model.lm_head.weight, llama().lm_head.weight)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="has 64 inputs, which are no whole number of groups of 48"):
        prepare_qat(llama(), 4, 48)


def test_one_bit_is_refused():
    with pytest.raises(ValueError, match="`bits` must be from 2 to 8, got 1"):
        intx_config(1, 32)


# Recipe


def load_recipe():
    spec = importlib.util.spec_from_file_location("compression", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def test_methods_are_chosen_by_parts_of_their_names_and_a_wrong_one_is_named():
    arguments = load_recipe().CompressionArguments
    swept = arguments(methods=["qat", "soft"], further_temperatures=[8.0])
    assert swept.methods == ["QAT", "soft targets", "soft targets, T = 8"]
    with pytest.raises(ValueError, match="'MiniLLM', which is no part of any of: rounding; outliers; QLoRA; QAT. "):
        arguments(methods=["MiniLLM"], distill_updates=0)


def test_tables_and_picture_are_of_what_was_run(tmp_path):
    full = {"bits": 32.0, "bytes": 9e6, "perplexity": 7.5, "seconds": 1.0, "row_losses": [2.0, 3.0, 4.0]}
    quantized = {"float32": full, "int8": full | {"perplexity": 8.0, "row_losses": [2.5, 3.5, 4.5]}}
    (table,) = compression_tables(quantized, {}, {}, {}, {})
    assert "7.5000" in table and "+0.5000 [+0.5000, +0.5000]" in table
    rows = PictureRows("compression", [0], {}, **compression_rows(quantized, {}, {}))
    assert plot_compression(rows, tmp_path / "picture.png").stat().st_size > 0


def test_the_pictures_have_the_temperatures_and_the_weights(tmp_path):
    interval = {"value": 2.0, "low": 1.5, "high": 2.5}
    students = {
        name: {"forward_kl": interval, "reverse_kl": interval, "temperature": temperature}
        for name, temperature in (("start", None), ("soft targets", 2.0), ("soft targets, T = 8", 8.0))
    }
    outliers = {"as trained": {"errors": {"plain": 0.02, "split": 0.01}}}
    quantized = {"float32": {"bits": 32.0, "perplexity": 7.5}}
    rows = PictureRows("compression", [0], {}, **compression_rows(quantized, outliers, students))
    assert plot_compression(rows, tmp_path / "picture.png").exists()
    model = llama()
    softer = softened(model, torch.arange(10)[None])
    assert plot_weights(model, weight_errors(model), softer, tmp_path / "weights.png").exists()


def test_a_temperature_of_one_is_the_models_own_distribution_and_higher_ones_are_flatter():
    model, ids = llama(), torch.arange(10)[None]
    softer = softened(model, ids, (1.0, 4.0), ranks=3)
    logs = model(ids).logits[0].log_softmax(-1)
    assert softer[1.0]["entropy"] == pytest.approx(-(logs.exp() * logs).sum(-1).mean().item(), rel=1e-5)
    assert softer[1.0]["probabilities"][0] == pytest.approx(logs.exp().amax(-1).mean().item(), rel=1e-5)
    assert softer[4.0]["entropy"] > softer[1.0]["entropy"] and len(softer[4.0]["probabilities"]) == 3


@pytest.mark.slow
def test_the_recipe_runs_through_all_stages(tmp_path):
    metrics = load_recipe().main(
        [
            *("--output_dir", str(tmp_path), "--max_documents", "300", "--teacher_steps", "25"),
            *("--student_steps", "8", "--qat_steps", "3", "--qlora_steps", "3", "--distill_updates", "2"),
            *("--eval_prompts", "5", "--completion_tokens", "7", "--batch_size", "16"),
        ]
    )
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() == metrics.keys()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    quantized = metrics["quantized"]
    assert quantized["float32"]["perplexity"] < 300  # of a vocabulary of 600
    assert 4.12 < quantized["NF4, double"]["bits"] < quantized["NF4"]["bits"] == 4.5
    assert all(row["base_unchanged"] for row in metrics["adapters"].values())
    planted = metrics["outliers"]["planted outliers"]["errors"]
    assert planted["split"] < planted["plain"] / 2
    swept = {f"soft targets, T = {value}" for value in ("0.5", "1", "4")}
    assert set(metrics["students"]) == {"start", "SFT", "soft targets", "on-policy", "MiniLLM"} | swept
    for file in ("compression.md", "compression.png", "samples.json", "nf4/model.safetensors"):
        assert (tmp_path / file).exists(), file
    for folder in ("teacher", "qat", "minillm"):
        AutoModelForCausalLM.from_pretrained(tmp_path / folder)
