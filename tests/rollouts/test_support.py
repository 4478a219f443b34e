"""The tokens on which a model's attention is checked before the first rollout and update."""

import pytest
import torch
from tiny_models import TINY
from transformers import AutoModelForCausalLM

from hf_evidenceflow.rollouts.support import attention_reason, packing_reason


@pytest.mark.parametrize("check", [attention_reason, packing_reason])
def test_checks_leave_out_the_first_ids_which_are_special_tokens(check, plain_checkpoint):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint).eval()
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert check(model) is None
    # The second pass of the attention's check is of the token that the first one gives
    ids = seen[0]
    assert ids.min() > 3 and ids.max() <= TINY["vocab_size"] // 2 and len(ids.unique()) == 8


def test_a_check_in_half_precision_holds_where_only_the_special_tokens_are_chaotic(plain_checkpoint):
    model = AutoModelForCausalLM.from_pretrained(plain_checkpoint, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[:4] = float("nan")
    assert packing_reason(model) is None
