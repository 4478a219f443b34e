"""Loads a plain or looped checkpoint as a looped Llama."""

from collections.abc import Sequence

from .looped.layer_sharing import relax_loops, share_layers as share
from .looped.modeling_looped import LoopedLlamaForCausalLM
from .weights import load_checked


def load_looped_model(
    path_or_id: str,
    num_loops: int | None = None,
    loop_block: Sequence[int] | Sequence[Sequence[int]] | None = None,
    exit_gate: bool = False,
    loop_lora_r: int | None = None,
    loop_lora_alpha: float | None = None,
    share_layers: bool = False,
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
        loop_lora_r, loop_lora_alpha (`int` and `float`, *optional*):
            Each loop changes the block's weights by a LoRA of this rank and scale, see [`LoopedLlamaConfig`]: a fresh
            one, which changes nothing yet, or with `share_layers` what a layer differs by.
        share_layers (`bool`, *optional*, defaults to `False`):
            Turn the layers of the block into an R-th as many, R = `num_loops`, each the average of those in whose
            place it stands (Relaxed Recursive Transformers, arXiv 2410.20672). For a plain checkpoint.
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
    >>> model = load_looped_model("Qwen/Qwen2.5-0.5B", num_loops=2, share_layers=True, loop_lora_r=64)
    ```
    """
    blocks: Sequence | None = loop_block
    if loop_block is not None and all(isinstance(each, int) for each in loop_block):
        blocks = [loop_block]
    loops = {"num_loops": num_loops, "loop_blocks": blocks}
    if share_layers and num_loops is None:
        raise ValueError("`share_layers=True` needs `num_loops`, how many layers become one.")
    if not share_layers:
        kwargs |= {name: value for name, value in loops.items() if value is not None}
    model = load_checked(LoopedLlamaForCausalLM, path_or_id, **kwargs)
    had = model.config
    if share_layers:
        share(model, num_loops, blocks, loop_lora_r or 0, loop_lora_alpha)
    elif loop_lora_r and not had.loop_lora_r:
        relax_loops(model, loop_lora_r, loop_lora_alpha)
    elif (loop_lora_r or 0, loop_lora_alpha) not in ((0, None), (had.loop_lora_r, had.loop_lora_alpha)):
        raise ValueError(
            f"`{path_or_id}` has `loop_lora_r` {had.loop_lora_r} and `loop_lora_alpha` {had.loop_lora_alpha}, which "
            f"cannot become {loop_lora_r} and {loop_lora_alpha}. Give both to a checkpoint that has none, or neither."
        )
    if exit_gate and not model.config.exit_gate:
        model.add_exit_gate()
    return model
