import pytest
import torch
from tiny_models import TINY
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


def make_plain(family="qwen2"):
    """A plain model that is sure of its tokens and ends rows at different steps."""
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY)) if family == "qwen2" else LlamaForCausalLM(LlamaConfig(**TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.lm_head.weight[TINY["eos_token_id"]] *= 2
    return model.eval()


@pytest.fixture(scope="module")
def plain():
    return make_plain()


@pytest.fixture
def padded():
    """Five prompts of four lengths, the third and the last alike."""
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(3, TINY["vocab_size"], (5, 9), generator=random)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((4, 0, 2, 7, 2)):
        mask[row, :padding] = 0
    ids[4] = ids[2]
    return {"input_ids": ids * mask, "attention_mask": mask}
