"""Token ids that a model has no embedding for are refused before training or generating."""

import numpy as np
import pytest
from datasets import Dataset
from tiny_models import TINY
from torch.utils.data import Subset
from transformers import Qwen2Config, Qwen2ForCausalLM

from hf_evidenceflow.data.packing import pack_rows
from hf_evidenceflow.data.token_blocks import TokenBlocks
from hf_evidenceflow.data.token_ids import check_prompt_tokens, check_rows, check_token_ids


SIZE = TINY["vocab_size"]


@pytest.fixture(scope="module")
def model():
    return Qwen2ForCausalLM(Qwen2Config(**TINY))


def rows_of(kind, ids):
    ids = np.asarray(ids, dtype=np.int32)
    if kind == "blocks":
        return TokenBlocks([ids[:5], ids[5:]], block_size=3)
    if kind == "dataset":
        return Dataset.from_dict({"input_ids": [ids[:2].tolist(), ids[2:].tolist()]})
    rows = pack_rows(ids, np.array([len(ids)]), block_size=3, packing="documents" if kind == "documents" else "blocks")
    return Subset(rows, [0]) if kind == "subset" else rows


@pytest.mark.parametrize("kind", ["rows", "documents", "subset", "blocks", "dataset"])
@pytest.mark.parametrize("wrong", [SIZE, -1])
def test_rows_with_an_id_outside_the_vocabulary_are_refused(model, kind, wrong):
    ids = [0, 1, SIZE - 1, 4, 5, 6, 7, 8, 9]
    check_rows(rows_of(kind, ids), model)
    with pytest.raises(ValueError, match=f"The text has the token id {wrong}, but the model has {SIZE} tokens"):
        check_rows(rows_of(kind, [*ids[:7], wrong, 9]), model, "The text")


def test_a_stream_is_not_read(model):
    check_rows(iter([{"input_ids": [10**6]}]), model)
    check_token_ids([], model, "Nothing")


def test_prompts_are_read_if_the_tokenizer_has_more_tokens_than_the_model(model, tokenizer):
    check_prompt_tokens(["ab", "c"], tokenizer, model)
    small = Qwen2ForCausalLM(Qwen2Config(**{**TINY, "vocab_size": 10}))
    check_prompt_tokens(["abc"], tokenizer, small)
    with pytest.raises(ValueError, match="Prompt 1 has the token id .*, but the model has 10 tokens"):
        check_prompt_tokens(["abc", "xyz"], tokenizer, small)
