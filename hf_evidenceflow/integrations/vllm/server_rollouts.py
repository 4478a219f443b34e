"""Rollouts of a trainer on `vllm serve`: the states come back through the server's call of its workers.

Shapes: C completion tokens, H hidden size.
"""

import uuid

import torch
from accelerate.utils import broadcast_object_list
from trl.generation.vllm_generation import VLLMGeneration

from .rollouts import TakenThinking
from .support import check_vllm
from .worker import WORKER, read_thinking_text


class ThinkingServerGeneration(TakenThinking, VLLMGeneration):
    """
    Differs from TRL's in fetching the thinking of completions from the server, which keeps it until then.

    The server loads a thinking checkpoint, with [`ThinkingWorker`] as its `--worker-extension-cls`; TRL sends the
    weights, and names no request, so that names are given to them here.

    Raises:
        `RuntimeError`: if the server does not answer for the thinking of its workers.
        `ValueError`: if it thinks in another mode than the trained model, or has several data-parallel engines.
    """

    def __init__(self, model, accelerator, *args, **kwargs):
        check_vllm()
        super().__init__(model, accelerator, *args, **kwargs)
        setting = [self._begin(model.config.thinking_mode) if accelerator.is_main_process else None]
        broadcast_object_list(setting, from_process=0)
        self.dtype = getattr(torch, setting[0]["dtype"])

    def _begin(self, mode):
        """Switch recording on; what the workers think in."""
        setting = self._call("thinking_setting")[0]
        if setting["thinking_mode"] != mode:
            raise ValueError(
                f"The server thinks in mode {setting['thinking_mode']!r}, and the model that is trained in {mode!r}. "
                f'Start it with `--hf-overrides \'{{"thinking_mode": "{mode}"}}\'`.'
            )
        engines = self.vllm_client.get_server_info()["parallel_config"]["data_parallel_size"]
        if engines != 1:
            raise ValueError(f"The server has {engines} data-parallel engines, whose states would be apart. Use one.")
        self._call("record_thinking", True)
        return setting

    def _call(self, method, *arguments):
        """What each worker returns for a method of [`ThinkingWorker`]."""
        address = f"{self.vllm_client.base_url}/collective_rpc"
        response = self.vllm_client.session.post(address, json={"method": method, "args": arguments})
        if response.status_code != 200:
            raise RuntimeError(
                f"The vLLM server answers {response.status_code} to the call `{method}` of its workers: "
                f"{response.text[:500]}. Start it with VLLM_SERVER_DEV_MODE=1 and `--worker-extension-cls {WORKER}`, "
                "on a thinking checkpoint."
            )
        return response.json()["results"]

    def generate(self, prompts, images, num_generations, profiler=None):
        """Differs from TRL's in naming the request and in keeping the thinking of this process's rows."""
        name = uuid.uuid4().hex
        self.generation_kwargs = {**self.generation_kwargs, "request_id": name}
        completions = []
        if self.accelerator.is_main_process:
            send = self.vllm_client.generate

            def kept(*args, **kwargs):
                output = send(*args, **kwargs)
                completions.extend(output["completion_ids"])
                return output

            self.vllm_client.generate = kept
        try:
            result = super().generate(prompts, images, num_generations, profiler)
        finally:
            if self.accelerator.is_main_process:
                self.vllm_client.generate = send
        payload = [self._take(name, completions, num_generations) if self.accelerator.is_main_process else None]
        broadcast_object_list(payload, from_process=0)
        first = self.accelerator.process_index * len(prompts)
        self.taken = payload[0][first : first + len(prompts)]
        return result

    def _take(self, name, completions, num_generations):
        """States `(C, H)` and mask `(C,)` of each completion."""
        names = [request_name(name, row, num_generations) for row in range(len(completions))]
        lengths = {name: len(ids) for name, ids in zip(names, completions, strict=True)}
        text = next(filter(None, self._call("take_thinking_text", lengths)))
        taken = read_thinking_text(text)
        return [taken[name] for name in names]


def request_name(name: str, row: int, num_generations: int) -> str:
    """
    The name inside vLLM of a completion of `/v1/completions`, whose rows are those of a prompt one after the other.

    Example:

    ```python
    >>> request_name("a", row=5, num_generations=2)
    '1_cmpl-a-2'
    ```
    """
    prompt, sample = divmod(row, num_generations)
    return f"cmpl-{name}-{prompt}" if num_generations == 1 else f"{sample}_cmpl-{name}-{prompt}"
