"""Tiny thinking checkpoints, engines of the CPU build around them, and what transformers computes for the same."""

import gc
import os
import sys
from pathlib import Path

import torch


HERE = str(Path(__file__).parent)
FAMILIES = ("qwen2", "llama", "qwen3")
SIZES = {
    "vocab_size": 131,
    "hidden_size": 128,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
# Wide open, so that a state that is wrong or missing changes the next tokens
GATES = {"thinking_residual_r_min": 0.3, "thinking_residual_r_max": 0.6}
NEW_TOKENS = 64
# What an engine on CPU needs, in fp32
ON_CPU = {
    "worker_cls": "cpu_worker.TestWorker",
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 * 2**20,
    "block_size": 32,
    "disable_log_stats": True,
}


def prepare_environment() -> None:
    """Before vLLM is imported: the V2 runner, in this process, on one thread, with the harness in each process."""
    os.environ.update(
        VLLM_USE_V2_MODEL_RUNNER="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_HOST_IP="127.0.0.1",
        GLOO_SOCKET_IFNAME="lo",
        TORCH_COMPILE_DISABLE="1",  # nothing compiles for a backend in name only
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        PYTHONPATH=os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    import triton_backend

    triton_backend.install()


def make_checkpoint(folder, tokenizer, family="qwen2", mode="projection", seed=0, **fields) -> str:
    """A thinking checkpoint with random weights."""
    from hf_evidenceflow.models.thinking.families import thinking_family

    family = thinking_family(family)
    torch.manual_seed(seed)
    config = family.config(**{**SIZES, "initializer_range": 0.1, "thinking_mode": mode, **GATES, **fields})
    model = family.causal_lm(config).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_engine(folder, **kwargs):
    """An engine on CPU, in fp32."""
    from vllm import LLM

    arguments = {**ON_CPU, "max_model_len": 256, "max_num_seqs": 32, "seed": 0}
    return LLM(model=folder, **{**arguments, **kwargs})


def make_prompts(count=24, seed=1) -> list[list[int]]:
    """Prompts of 3 to 49 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [3 + 2 * index for index in range(count)]
    return [torch.randint(3, SIZES["vocab_size"], (length,), generator=generator).tolist() for length in lengths]


def run(llm, prompts, **sampling):
    """Outputs of vLLM, in the order of the prompts."""
    from vllm import SamplingParams

    parameters = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True, "detokenize": False, "logprobs": 0}
    parameters = SamplingParams(**{**parameters, **sampling})
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)


def tokens_of(outputs) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def id_of(output, completion) -> str:
    """The id that vLLM gives a completion of a request."""
    return output.request_id if len(output.outputs) == 1 else f"{completion.index}_{output.request_id}"


def lengths_of(outputs) -> dict[str, int]:
    """Tokens of each completion by its id."""
    return {id_of(output, part): len(part.token_ids) for output in outputs for part in output.outputs}


def close(llm) -> None:
    """Free an engine of this process."""
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


@torch.no_grad()
def reference_tokens(folder, prompts, new_tokens=NEW_TOKENS, **fields) -> list[list[int]]:
    """Greedy completions of our `generate`."""
    model = load(folder, **fields)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    output = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
    return output[:, longest:].tolist()


def load(folder, **fields):
    from hf_evidenceflow import load_thinking_model

    return load_thinking_model(folder, dtype=torch.float32, **fields).eval()


def model_state(llm):
    return llm.llm_engine.model_executor.driver_worker.model_runner.model_state
