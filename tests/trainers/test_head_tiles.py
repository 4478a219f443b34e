import inspect

import pytest
import torch
from trl.kernels import chunked_logprob

from hf_evidenceflow.trainers.head_tiles import (
    FOLDED_COPIES,
    TILE_LOGITS,
    TILE_TOKENS,
    small_head_tiles,
    tile_memory,
)


CPU = torch.device("cpu")


def test_tiles_are_small_inside_on_a_cpu_and_as_before_after_an_error():
    before = chunked_logprob.TOKEN_CHUNK_SIZE
    with pytest.raises(KeyError), small_head_tiles(CPU):
        assert chunked_logprob.TOKEN_CHUNK_SIZE == TILE_TOKENS
        raise KeyError
    assert before == chunked_logprob.TOKEN_CHUNK_SIZE


def test_a_gpu_keeps_the_tiles_of_its_kernel():
    before = chunked_logprob.TOKEN_CHUNK_SIZE
    with small_head_tiles(torch.device("cuda")):
        assert before == chunked_logprob.TOKEN_CHUNK_SIZE


def test_smaller_tiles_give_the_same_numbers_and_gradients(monkeypatch):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5), torch.randn(11, 5)
    targets = torch.randint(11, (7,))

    def run(tile):
        monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", tile)
        tensors = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logps, *_ = chunked_logprob.ChunkedLogProbFunction.apply(*tensors, None, targets, 0.5, 4)
        logps.sum().backward()
        return logps.detach(), *(tensor.grad for tensor in tensors)

    for ours, theirs in zip(run(3), run(7)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_trl_reads_the_size_at_each_call(method):
    source = inspect.getsource(getattr(chunked_logprob.ChunkedLogProbFunction, method))
    assert "range(0, N, TOKEN_CHUNK_SIZE)" in source


def test_a_tile_holds_no_more_than_its_tokens_and_logits():
    assert tile_memory(CPU, 10, 100, 2) == FOLDED_COPIES * 10 * 100 * 4
    assert tile_memory(CPU, 10**6, 10**6, 2) == FOLDED_COPIES * TILE_TOKENS * TILE_LOGITS * 4
    assert tile_memory(torch.device("cuda"), 10, 100, 2) == 10 * 100 * 2
