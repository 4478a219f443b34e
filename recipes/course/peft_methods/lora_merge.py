"""What merging a LoRA into the weights costs, in the logits and in the weights after it is taken out again."""

import copy

import torch
from peft import PeftModel


@torch.no_grad()
def merge_errors(model: PeftModel, input_ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """
    Merges the active LoRA of a model into its weights, and takes it out again.

    In exact arithmetic `W x + s B A x` and `(W + s B A) x` are the same. In floating point the sums are rounded at
    other places, and the merged weight is rounded to the dtype of the base model, in which a small `s B A` is lost.

    Source: Hu et al. 2021 (2106.09685), section 4.1: merged for inference, the model is as fast as the base model.

    Args:
        model ([`~peft.PeftModel`]):
            A model with a LoRA. It is copied, and stays as it is.
        input_ids (`torch.Tensor` of shape `[B, T]`):
            Tokens to compare the logits on.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Dtype of the base weights; the adapter stays in float32, as peft trains it.

    Returns:
        `dict[str, float]`: `logits`: the largest difference of the merged model's logits; `changed`: the share of
        tokens after which another one is the likeliest; `weights`: the largest difference of a base weight after
        unmerging.

    Raises:
        `ValueError`: if the model has no LoRA, or it is merged already.
    """
    if not isinstance(model, PeftModel) or not any("lora_A" in name for name, _ in model.named_modules()):
        raise ValueError(
            f"The model has no LoRA to merge, got a {type(model).__name__}. Give one with a `LoraConfig`."
        )
    if any(getattr(module, "merged_adapters", None) for module in model.modules()):
        raise ValueError("The LoRA is merged already. Call `unmerge_adapter()` first.")
    model = copy.deepcopy(model).eval()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(dtype)
    weights = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    before = model(input_ids=input_ids).logits.float()
    model.merge_adapter()
    after = model(input_ids=input_ids).logits.float()
    model.unmerge_adapter()
    state = model.state_dict()
    return {
        "logits": (after - before).abs().max().item(),
        "changed": (after.argmax(-1) != before.argmax(-1)).float().mean().item(),
        "weights": max((state[name] - value).abs().max().item() for name, value in weights.items()),
    }
