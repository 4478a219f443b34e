import pytest
import torch
from plain_models import make_plain
from tiny_models import TINY


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
