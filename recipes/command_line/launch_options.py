"""The options of `accelerate launch` that `hf-evidenceflow` takes next to the recipe's own; no recipe has them."""

# `accelerate_config` is ours, as in TRL's command: the `--config_file` of `accelerate launch`, or a packaged one
VALUES = (
    "accelerate_config",
    "num_processes",
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "mixed_precision",
    "gpu_ids",
    "num_cpu_threads_per_process",
    "rdzv_backend",
    "zero_stage",
)
FLAGS = ("multi_gpu", "use_deepspeed", "use_fsdp", "cpu", "same_network")


def launch_option(option: str) -> str | None:
    """The name of an option of `accelerate launch`, written with hyphens or not; None for any other text."""
    name = option.removeprefix("--").replace("-", "_")
    return name if option.startswith("--") and name in VALUES + FLAGS else None
