"""Calls of a worker by name, for an engine in other processes: `LLM(..., worker_extension_cls=WORKER)`."""

import base64
from typing import Any

from safetensors.torch import load, save


WORKER = "hf_evidenceflow.integrations.vllm.worker.ThinkingWorker"


class ThinkingWorker:
    """
    Hands out the thinking of completions, through `LLM.collective_rpc`.

    Example:

    ```python
    >>> llm.collective_rpc("record_thinking", args=(True,))
    >>> outputs = llm.generate(prompts)
    >>> lengths = {output.request_id: len(output.outputs[0].token_ids) for output in outputs}
    >>> thinking = read_thinking(llm.collective_rpc("take_thinking", args=(lengths,))[0])
    ```
    """

    # Of the worker that vLLM mixes this into
    model_runner: Any
    is_driver_worker: bool

    def record_thinking(self, on: bool) -> None:
        """Whether records of requests that have ended are kept until they are taken; off, a few are kept."""
        store = self.model_runner.model_state.records
        store.keeps = on and self.is_driver_worker

    def take_thinking(self, lengths: dict[str, int]) -> bytes:
        """
        States and masks of completions of so many tokens by id, for [`read_thinking`]; empty but on the first worker.
        vLLM returns nested tensors as lists, so they come as the bytes of a safetensors file.
        """
        state = self.model_runner.model_state
        if not self.is_driver_worker:
            state.records.clear()
            return b""
        taken = take_thinking(state, lengths)
        return save({f"{kind}/{name}": part for name, pair in taken.items() for kind, part in zip(_KINDS, pair)})

    def take_thinking_text(self, lengths: dict[str, int]) -> str:
        """[`take_thinking`] as text, for the `/collective_rpc` of a server; see [`read_thinking_text`]."""
        return base64.b64encode(self.take_thinking(lengths)).decode()

    def thinking_setting(self) -> dict[str, str]:
        """The mode that the engine thinks in, and the dtype that it computes in."""
        config = self.model_runner.model_config
        return {"thinking_mode": config.hf_config.thinking_mode, "dtype": str(config.dtype).removeprefix("torch.")}

    def thinking_stats(self) -> dict[str, int]:
        """Requests whose records are held: `live` in a slot, `left` without one."""
        store = self.model_runner.model_state.records
        return {"live": len(store.live), "left": len(store.left)}

    def clear_thinking(self) -> None:
        """Drop the records of requests that have ended."""
        self.model_runner.model_state.records.clear()


_KINDS = ("states", "mask")


def take_thinking(model_state, lengths: dict[str, int]):
    """
    States `(C, H)` and masks `(C,)` by id, as [`ThinkingRollout`] has them, of finished completions of so many tokens.
    """
    taken = model_state.records.take(lengths, model_state.state.shape[1])
    return {name: (states, markers != model_state.found) for name, (states, markers) in taken.items()}


def read_thinking(data: bytes):
    """States `(C, H)` and masks `(C,)` by id, from what [`ThinkingWorker.take_thinking`] returns."""
    parts = load(data)
    names = [name.removeprefix("mask/") for name in parts if name.startswith("mask/")]
    return {name: tuple(parts[f"{kind}/{name}"] for kind in _KINDS) for name in names}


def read_thinking_text(text: str):
    """As [`read_thinking`], from what [`ThinkingWorker.take_thinking_text`] returns."""
    return read_thinking(base64.b64decode(text))
