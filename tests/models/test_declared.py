"""What a model declares to a trainer: parameters without weight decay, statistics of an evaluation."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_evidenceflow import CrossLayerLlamaConfig, CrossLayerLlamaForCausalLM
from hf_evidenceflow.models.declared import evaluation_statistics, no_decay_names, statistic_names


IDS = torch.tensor([[3, 4, 5]])


def cross_layer():
    return CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v2m3"))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=3, num_experts_per_tok=2))


def test_a_model_that_declares_nothing_has_no_names():
    assert no_decay_names(LlamaForCausalLM(LlamaConfig(**TINY))) == set()


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda model: get_peft_model(model, LoraConfig(r=2))])
def test_declared_parameters_are_found_in_a_wrapper(wrap):
    bare = no_decay_names(cross_layer())
    wrapped = no_decay_names(wrap(cross_layer()))
    assert len(bare) == len(wrapped) > 0
    assert all(any(name.endswith(own) for own in bare) for name in wrapped)


def test_the_statistics_of_experts_are_there_when_the_block_has_ended():
    model = mixtral()
    with torch.no_grad(), evaluation_statistics(model) as statistics:
        model(IDS)
        assert statistics == {}
    assert tuple(statistics) == statistic_names(model)
    assert "router_max_load" in statistics


def test_a_model_without_experts_has_no_statistics():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    with torch.no_grad(), evaluation_statistics(model) as statistics:
        model(IDS)
    assert statistics == {} and statistic_names(model) == ()
