"""What the statistics of a mixture of experts count."""

import math

import pytest
import torch
from tiny_families import tiny_causal_lm, token_ids
from tiny_tinyseek import tiny_tinyseek

from hf_evidenceflow import RouterStatistics
from hf_evidenceflow.models.router_statistics import LayerLoad, expert_modules


IDS = token_ids(2, 11)


def counted(model, **inputs):
    with torch.no_grad(), RouterStatistics(model) as statistics:
        model(**inputs)
    return statistics


def chosen(model, **inputs):
    """Router logits' top experts, counted by hand: `[L, E]`."""
    logits = model(**inputs, output_router_logits=True).router_logits
    config = model.config
    indices = [layer.topk(config.num_experts_per_tok, dim=-1).indices for layer in logits]
    return torch.stack(
        [
            torch.bincount(layer.flatten(), minlength=layer_logits.shape[1])
            for layer, layer_logits in zip(indices, logits)
        ]
    )


def test_each_loop_is_a_layer():
    model = tiny_tinyseek(num_hidden_layers=4)
    loads = torch.stack([layer.load for layer in counted(model, input_ids=IDS).layers()])
    torch.testing.assert_close(loads * IDS.numel(), chosen(model, input_ids=IDS).double())


def test_other_mixtures_of_experts_are_counted_too():
    model = tiny_causal_lm("mixtral").eval()
    loads = torch.stack([layer.load for layer in counted(model, input_ids=IDS).layers()])
    torch.testing.assert_close(loads * IDS.numel(), chosen(model, input_ids=IDS).double())


def test_padding_does_not_count():
    model = tiny_tinyseek()
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(15) >= 4).long().repeat(2, 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left = counted(model, input_ids=padded, attention_mask=mask, position_ids=positions)
    plain = counted(model, input_ids=IDS)
    for one, other in zip(left.layers(), plain.layers()):
        assert torch.equal(one.load, other.load) and one.tokens == other.tokens == IDS.numel()


def test_the_balance_is_the_models_own():
    model = tiny_tinyseek()
    statistics = counted(model, input_ids=IDS)
    expected = model(IDS, labels=IDS).aux_loss.item() / 3
    assert statistics.summary()["router_balance"] == pytest.approx(expected, abs=1e-6)


def test_passes_add_up():
    model = tiny_tinyseek()
    with torch.no_grad(), RouterStatistics(model) as statistics:
        model(IDS[:, :6])
        model(IDS[:, 6:])
    assert statistics.layers()[0].tokens == IDS.numel()
    assert statistics.layers()[1].load.sum().item() == pytest.approx(3)


def test_checkpointed_passes_count_once():
    model = tiny_tinyseek().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with RouterStatistics(model) as statistics:
        model(IDS, labels=IDS).loss.backward()
    assert len(statistics.layers()) == 3 and statistics.layers()[0].tokens == IDS.numel()


def test_nothing_stays_on_the_model():
    model = tiny_tinyseek()
    counted(model, input_ids=IDS)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_once_ends_with_the_pass():
    model = tiny_tinyseek()
    statistics = RouterStatistics(model, once=True)
    statistics.attach()
    model(IDS)
    model(IDS)
    assert statistics.layers()[0].tokens == IDS.numel()


def test_measures_of_a_load_by_hand():
    layer = LayerLoad(torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=torch.double), 2, 0.0)
    assert layer.max_load == 2.0 and layer.dead == 0.25
    assert layer.entropy == pytest.approx(1.5 * math.log(2) / math.log(4))


def test_a_dense_model_is_refused():
    model = tiny_causal_lm("llama")
    assert expert_modules(model) == []
    with pytest.raises(ValueError, match="LlamaForCausalLM has no module `experts`"):
        RouterStatistics(model)


def test_statistics_before_a_pass_are_an_error():
    with pytest.raises(RuntimeError, match="No token was counted"):
        RouterStatistics(tiny_tinyseek()).summary()
