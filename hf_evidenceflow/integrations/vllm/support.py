"""Which vLLM, and which of its settings, thinking models run with; all others are refused by name."""

import importlib
import inspect

import vllm
from packaging.specifiers import SpecifierSet


WINDOW = SpecifierSet(">=0.28,<0.34")
TESTED = "0.30.0"

# What we override or read, none of which vLLM promises to keep
NAMES = {
    "vllm.model_executor.models.config": ("MODELS_CONFIG_MAP", "VerifyAndUpdateConfig"),
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": ("add_request",),
    "vllm.v1.core.sched.scheduler.Scheduler": ("add_request",),
    "vllm.v1.request.Request": ("update_block_hashes",),
    "vllm.v1.worker.gpu.input_batch.InputBatch": (
        "idx_mapping",
        "input_ids",
        "is_prefilling_np",
        "logits_indices",
        "num_computed_tokens_np",
        "num_reqs",
        "num_scheduled_tokens",
        "num_tokens",
        "num_tokens_after_padding",
        "prefill_len_np",
        "query_start_loc_np",
        "req_ids",
        "seq_lens",
    ),
    "vllm.v1.worker.gpu.model_states.default.DefaultModelState": (
        "add_request",
        "custom_sampler",
        "prepare_dummy_inputs",
        "prepare_inputs",
        "remove_request",
    ),
    "vllm.v1.worker.gpu.sample.sampler.Sampler": ("__call__", "sample"),
}


def missing_names() -> list[str]:
    """Those of [`NAMES`] that the installed vLLM does not have."""
    missing = []
    for path, names in NAMES.items():
        owner = _resolve(path)
        if owner is None:
            missing.append(path)
            continue
        found = {*dir(owner), *inspect.get_annotations(owner)}
        missing += [f"{path}.{name}" for name in names if name not in found]
    return missing


def _resolve(path):
    module, _, name = path.rpartition(".")
    try:
        if name.islower():
            return importlib.import_module(path)
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def check_vllm() -> None:
    """
    Compare the installed vLLM with what the integration needs.

    Raises:
        `ImportError`: if its version is outside the window, or one of the names is gone.
    """
    outside = not WINDOW.contains(vllm.__version__, prereleases=True)
    missing = [] if outside else missing_names()
    if outside or missing:
        gone = f" lacks {', '.join(missing)}, which thinking models lean on" if missing else " is outside of it"
        raise ImportError(
            f"Thinking models run on vLLM {WINDOW} (tested: {TESTED}); the installed {vllm.__version__}{gone}. "
            f"Install `hf-evidenceflow[vllm]`, or `vllm=={TESTED}`."
        )


def refuse_method(config) -> None:
    """
    Refuse, with a `ValueError` that says what to do, a way of thinking of a model's config that vLLM cannot follow.
    """
    method = config.thinking_method
    parts = {
        "thinking_source": (method.source, (None, "mean_embedding", "unit_mean_embedding", "projection", "hidden")),
        "thinking_mixer": (method.mixer, ("gated", "replace", "token")),
        "thinking_schedule": (method.schedule, ("until_marker", "count", "always")),
        "thinking_noise": (method.noise, ("none",)),
        "thinking_top_k": (config.thinking_top_k, (None,)),
        "thinking_temperature": (config.thinking_temperature, (1,)),
    }
    for name, (value, supported) in parts.items():
        if value not in supported:
            raise ValueError(
                f"`{name}={value!r}` (`thinking_mode={config.thinking_mode!r}`) does not run on vLLM, which supports "
                f"{', '.join(map(repr, supported))}. Use `generate` and its `RolloutEngine`, or set another "
                "`thinking_mode`, by `hf_overrides` for example."
            )


def refuse_settings(config) -> None:
    """
    Refuse, with a `ValueError` that says what to do, settings of a `VllmConfig` under which a model could not think
    right.
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    refused = {
        "pipeline parallelism": (
            parallel.pipeline_parallel_size > 1,
            "the last stage's states are the first one's inputs. Set `pipeline_parallel_size=1`, and use tensor "
            "parallelism",
        ),
        "prefill context parallelism": (
            parallel.prefill_context_parallel_size > 1,
            "it cuts up the inputs that states are mixed into. Set `prefill_context_parallel_size=1`",
        ),
        "speculative decoding": (
            config.speculative_config is not None,
            "a draft has no thinking states. Leave `speculative_config` out",
        ),
        "prompt embeddings": (
            config.model_config.enable_prompt_embeds,
            "the inputs of a thinking model are its own embeddings. Set `enable_prompt_embeds=False`",
        ),
        "batch-sharded sampling": (
            bool(parallel.enable_batch_sharded_sampling),
            "each process needs the states of all rows. Set `enable_batch_sharded_sampling=False`",
        ),
        "priority scheduling": (
            scheduling.policy != "fcfs",
            "the records of a request that waits for long might be dropped. Set `scheduling_policy='fcfs'`",
        ),
        "KV transfer": (
            config.kv_transfer_config is not None,
            "the states of a completion do not travel with its cache. Leave `kv_transfer_config` out",
        ),
        "the V1 model runner": (
            not config.use_v2_model_runner,
            "it has no place for thinking states. Set the environment variable VLLM_USE_V2_MODEL_RUNNER=1; the "
            "V2 runner needs Triton",
        ),
    }
    for name, (is_set, reason) in refused.items():
        if is_set:
            raise ValueError(
                f"Thinking models (`thinking_mode={config.model_config.hf_config.thinking_mode!r}`) do not run with "
                f"{name}: {reason}; or serve without thinking, `hf_overrides={{'thinking_mode': 'none'}}`."
            )
