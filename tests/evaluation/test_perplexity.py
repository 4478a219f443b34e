import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM
from hf_evidenceflow.evaluation.perplexity import (
    bits_per_byte,
    next_token_losses,
    perplexity_interval,
    perplexity_tables,
    position_limit,
    score_long_text,
    score_text,
)


def llama():
    return LlamaForCausalLM(LlamaConfig(**TINY, initializer_range=0.2))


def tinyseek():
    return TinySeekForCausalLM(
        TinySeekConfig(
            vocab_size=97,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            q_lora_rank=7,
            kv_lora_rank=5,
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=9,
            qk_rope_head_dim=4,
            initializer_range=0.2,
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=24, n_layer=2, n_head=4, n_positions=64))


def opt():
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=97,
            hidden_size=24,
            word_embed_proj_dim=24,
            ffn_dim=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    )


def build(make):
    torch.manual_seed(0)
    return make().eval()


def text(tokens=230):
    return np.random.default_rng(0).integers(3, 97, tokens).astype(np.int32)


def plain_losses(model, ids, block_size):
    """Row by row and token by token: the loss of each, and whether it was the most probable one."""
    losses, right = [], []
    for start in range(0, len(ids), block_size):
        row = torch.from_numpy(ids[start : start + block_size].astype(np.int64))
        for place in range(1, len(row)):
            with torch.no_grad():
                logits = model(input_ids=row[None, :place]).logits[0, -1]
            losses.append(F.cross_entropy(logits, row[place]).item())
            right.append(logits.argmax().item() == row[place].item())
    return losses, right


def test_score_equals_a_plain_loop_over_all_tokens_with_a_shorter_last_row():
    model, ids = build(llama), text(47)
    losses, right = plain_losses(model, ids, 11)
    score = score_text(model, ids, block_size=11, batch_size=3)
    assert score.tokens == len(losses) == 42  # 4 rows of 11, one of 3
    assert score.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.accuracy == pytest.approx(sum(right) / len(right))


def test_the_losses_of_the_rows_are_those_of_the_text():
    score = score_text(build(llama), text(15), block_size=5)
    assert np.mean(score.row_losses) == pytest.approx(score.loss) and len(score.row_losses) == 3
    low, high = perplexity_interval(score.row_losses)[1:]
    assert low < score.perplexity < high


def test_the_batch_size_does_not_change_the_score():
    model, ids = build(llama), text(90)
    scores = [score_text(model, ids, 13, batch_size).loss for batch_size in (1, 5)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("make", [llama, tinyseek, gpt2, opt])
@pytest.mark.parametrize("chunk_size", [1, 7, 59])
def test_chunks_with_a_cache_give_the_losses_of_one_pass(make, chunk_size):
    model = build(make)
    rows = torch.from_numpy(text(120).astype(np.int64)).view(2, 60)
    whole, chunked = next_token_losses(model, rows)[0], next_token_losses(model, rows, chunk_size)[0]
    assert whole.shape == (2, 59)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


def test_buckets_sum_to_the_total():
    for result in score_long_text(build(llama), text(), [20, 50], bucket_size=8, chunk_size=16):
        assert sum(bucket.score.tokens for bucket in result.buckets) == result.score.tokens
        for name in ("loss", "accuracy"):
            total = sum(getattr(bucket.score, name) * bucket.score.tokens for bucket in result.buckets)
            assert total / result.score.tokens == pytest.approx(getattr(result.score, name), abs=1e-9)


def test_a_bucket_holds_the_tokens_at_its_positions():
    model, ids = build(llama), text(100)
    (result,) = score_long_text(model, ids, [50], bucket_size=20, chunk_size=7)
    losses = np.array(plain_losses(model, ids, 50)[0]).reshape(2, 49)
    assert [(bucket.first, bucket.last) for bucket in result.buckets] == [(0, 19), (20, 39), (40, 49)]
    assert result.buckets[1].score.loss == pytest.approx(losses[:, 19:39].mean(), abs=1e-5)


def test_buckets_of_one_position_leave_out_the_first_token():
    (result,) = score_long_text(build(llama), text(12), [4], bucket_size=1)
    assert [(bucket.first, bucket.score.tokens) for bucket in result.buckets] == [(1, 3), (2, 3), (3, 3)]


def test_all_lengths_score_the_same_text():
    results = score_long_text(build(llama), text(230), [25, 50, 100], max_tokens=120)
    assert [result.rows for result in results] == [4, 2, 1]


def test_the_largest_length_sets_the_table_of_positions():
    tables = perplexity_tables(score_long_text(build(llama), text(100), [10, 20]))
    assert [row[0] for row in tables[0][2]] == ["10", "20"]
    assert [row[0] for row in tables[1][2]] == ["0-9", "10-19"]


@pytest.mark.parametrize("make, limit", [(llama, None), (tinyseek, None), (gpt2, 64), (opt, 64)])
def test_only_a_table_of_positions_limits_the_length(make, limit):
    assert position_limit(build(make)) == limit


def test_bits_per_byte_of_a_uniform_byte_model_is_eight():
    assert bits_per_byte(math.log(256), 10, 10) == pytest.approx(8)


def test_a_text_without_a_token_to_predict_is_an_error():
    with pytest.raises(ValueError, match=r"1 token.*nothing to predict"):
        score_text(build(llama), text(1), 8)


def test_weights_that_are_not_finite_are_an_error():
    model = build(llama)
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        score_text(model, text(20), 8)


@pytest.mark.parametrize("lengths", [[], [1, 8], [8, 231]])
def test_lengths_that_the_text_cannot_fill_are_an_error(lengths):
    with pytest.raises(ValueError, match=r"context length.*230 tokens"):
        score_long_text(build(llama), text(), lengths)


def test_a_model_without_a_kv_cache_cannot_be_cut_into_chunks():
    torch.manual_seed(0)

    class Forgetful(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            return CausalLMOutput(logits=super().forward(*args, **kwargs).logits)

    model = Forgetful(llama().config).eval()
    with pytest.raises(ValueError, match=r"Forgetful returned no `past_key_values`"):
        score_long_text(model, text(20), [10], chunk_size=4)
