"""The cache's argument has one name before transformers 5.24 and another one since; ours take both."""

from pathlib import Path

import pytest
import torch
from tiny_models import TINY
from tiny_tinyseek import tiny_tinyseek
from transformers import DynamicCache

import hf_evidenceflow
from hf_evidenceflow import (
    CrossLayerLlamaConfig,
    CrossLayerLlamaForCausalLM,
    LoopedLlamaConfig,
    LoopedLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
)
from hf_evidenceflow.models.ablation.configuration_ablation import AblationLlamaConfig
from hf_evidenceflow.models.ablation.modeling_ablation import AblationLlamaForCausalLM


MODELS = {
    "tinyseek": tiny_tinyseek,
    "crosslayer": lambda: CrossLayerLlamaForCausalLM(CrossLayerLlamaConfig(**TINY, variant="v3m1")),
    "thinking": lambda: ThinkingQwen2ForCausalLM(ThinkingQwen2Config(**TINY)),
    "ablation": lambda: AblationLlamaForCausalLM(AblationLlamaConfig(**TINY, position_embedding="learned")),
    "looped": lambda: LoopedLlamaForCausalLM(LoopedLlamaConfig(**TINY, num_loops=2)),
}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_a_cache_is_used_under_either_name(family, name):
    model = MODELS[family]().eval()
    ids = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    body = model.base_model
    body(ids[:, :4], use_cache=True, **{name: cache})
    states = body(ids[:, 4:], use_cache=True, **{name: cache}).last_hidden_state
    assert cache.get_seq_length() == 7
    torch.testing.assert_close(states, body(ids).last_hidden_state[:, 4:], atol=1e-5, rtol=1e-5)


def test_the_copies_for_the_hub_are_alike():
    copies = list(Path(hf_evidenceflow.__file__).parent.glob("models/*/cache_argument.py"))
    assert len(copies) == 5 and len({path.read_text() for path in copies}) == 1
