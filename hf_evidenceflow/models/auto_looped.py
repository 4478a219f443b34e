"""Loads a plain or looped checkpoint as a looped Llama."""

from collections.abc import Sequence

from .looped.modeling_looped import LoopedLlamaForCausalLM
from .weights import load_checked


def load_looped_model(
    path_or_id: str,
    num_loops: int | None = None,
    loop_block: Sequence[int] | Sequence[Sequence[int]] | None = None,
    exit_gate: bool = False,
    **kwargs,
) -> LoopedLlamaForCausalLM:
    """
    Load a checkpoint of Llama, Mistral, Qwen2, Qwen3, Ouro, Nanbeige4.2 or a looped Llama as a
    [`LoopedLlamaForCausalLM`].

    Args:
        path_or_id (`str`):
            Hub name or local folder of a checkpoint. No code of it is run.
        num_loops (`int`, *optional*):
            Number of loops; if not given, the checkpoint's, which of a plain one is 1: then it computes what it did.
        loop_block (`Sequence[int]` or `Sequence[Sequence[int]]`, *optional*):
            First layer of the block that loops and the one behind its last, or several such pairs. If not given, the
            checkpoint's; of a plain one, all layers.
        exit_gate (`bool`, *optional*, defaults to `False`):
            Add a fresh gate if the checkpoint has none.
        kwargs:
            Passed to `from_pretrained`: `dtype`, `device_map`, ... and fields of [`LoopedLlamaConfig`], such as
            `loop_damping=True`.

    Raises:
        `OSError`, `ValueError`: if the checkpoint's type cannot be looped, or has what would be lost; or as
            [`load_checked`].

    Example:

    ```python
    >>> from hf_evidenceflow import load_looped_model

    >>> model = load_looped_model("Qwen/Qwen2.5-0.5B", num_loops=2, loop_block=(8, 12), loop_damping=True)
    >>> model = load_looped_model("ByteDance/Ouro-1.4B", early_exit_threshold=0.9)
    ```
    """
    if num_loops is not None:
        kwargs["num_loops"] = num_loops
    if loop_block is not None:
        is_pair = all(isinstance(each, int) for each in loop_block)
        kwargs["loop_blocks"] = [loop_block] if is_pair else loop_block
    model = load_checked(LoopedLlamaForCausalLM, path_or_id, **kwargs)
    if exit_gate and not model.config.exit_gate:
        model.add_exit_gate()
    return model
