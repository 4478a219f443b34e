"""vLLM's scheduler with a prefix cache in which no other request finds the cache blocks of a completion.

Keys and values of a completion come from fused inputs, which its tokens do not tell: a later prompt with the same
tokens must not read them. Blocks of a prompt keep vLLM's hashes and are shared as ever.
"""

import functools
import hashlib
import weakref

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


def update_block_hashes(request, block_size: int) -> None:
    """
    Hash a request's new full blocks as vLLM does, and mix its id into those that hold a completion token.

    Args:
        request (`vllm.v1.request.Request`): the request.
        block_size (`int`): tokens a hash is of.
    """
    first = len(request.block_hashes)
    Request.update_block_hashes(request)
    for index in range(max(first, request.num_prompt_tokens // block_size), len(request.block_hashes)):
        mixed = hashlib.sha256(request.block_hashes[index] + request.request_id.encode())
        request.block_hashes[index] = mixed.digest()


class ThinkingSchedulerMixin:
    """Differs from vLLM's schedulers in the hashes of completions; put before one of them."""

    def add_request(self, request):
        # No cycle, so that a request that has ended is freed at once
        request.update_block_hashes = functools.partial(
            update_block_hashes, weakref.proxy(request), self.hash_block_size
        )
        super().add_request(request)


class ThinkingScheduler(ThinkingSchedulerMixin, Scheduler):
    """vLLM's synchronous scheduler."""


class ThinkingAsyncScheduler(ThinkingSchedulerMixin, AsyncScheduler):
    """vLLM's scheduler that runs ahead of the device."""


def thinking_scheduler(vllm_config, **kwargs):
    """The scheduler of an engine: synchronous or not is settled after `scheduler_cls` was set."""
    cls = ThinkingAsyncScheduler if vllm_config.scheduler_config.async_scheduling else ThinkingScheduler
    return cls(vllm_config=vllm_config, **kwargs)
