"""How far a policy has gone from the model that it started from: the KL of whole completions.

    KL(pi || pi_ref) = E_(y ~ pi) sum_t KL(pi(. | y_<t) || pi_ref(. | y_<t))

Each term is summed over the vocabulary, not estimated from the token drawn: no bias, less variance, and never below 0.

Shapes: B rows, P prompt tokens, C completion tokens, V vocabulary.
"""

import torch

from hf_evidenceflow.rollouts.generation_settings import own_generation_config


@torch.no_grad()
def completion_kl(
    policy, reference, input_ids: torch.Tensor, prompt_mask: torch.Tensor, completion_mask: torch.Tensor
):
    """
    The KL of each completion, given ones that the policy has drawn.

    Args:
        policy, reference ([`~transformers.PreTrainedModel`]):
            Causal LMs with the same vocabulary.
        input_ids (`torch.Tensor` of shape `(B, P + C)`):
            Prompts, padded on the left, and completions, padded on the right.
        prompt_mask (`torch.Tensor` of shape `(B, P)`):
            1 at the prompts' tokens.
        completion_mask (`torch.Tensor` of shape `(B, C)`):
            1 at the completions' tokens, the end of sequence included.

    Returns:
        `torch.Tensor` of shape `(B,)`: nats for each completion; their mean estimates the KL.
    """
    attention_mask = torch.cat([prompt_mask, completion_mask], dim=1)
    keep = completion_mask.shape[1] + 1
    logps, ref_logps = (
        model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=keep)
        .logits[:, :-1]
        .float()
        .log_softmax(-1)
        for model in (policy, reference)
    )  # [B, C, V]
    per_token = (logps.exp() * (logps - ref_logps)).sum(-1)  # [B, C]
    return (per_token * completion_mask).sum(1)


@torch.no_grad()
def sampled_kl(
    policy, reference, tokenizer, prompts: list[str], max_new_tokens: int, batch_size: int = 64, seed: int = 0
) -> float:
    """
    The KL of a policy to a reference, estimated from one completion a prompt that the policy draws.

    Args:
        policy, reference ([`~transformers.PreTrainedModel`]):
            Causal LMs with the same vocabulary, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both, with a padding and an end-of-sequence token.
        prompts (`list[str]`):
            Prompts.
        max_new_tokens (`int`):
            Longest completion.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows of a pass.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws; the global random state is left as it was.

    Returns:
        `float`: nats for a completion.
    """
    total = 0.0
    device = policy.device
    config = own_generation_config(
        policy,
        do_sample=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            batch = tokenizer(
                prompts[start : start + batch_size], padding=True, padding_side="left", return_tensors="pt"
            )
            ids, prompt_mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            drawn = policy.generate(input_ids=ids, attention_mask=prompt_mask, generation_config=config)
            is_end = drawn[:, ids.shape[1] :] == tokenizer.eos_token_id
            completion_mask = (is_end.cumsum(1) - is_end.int() == 0).long()  # up to the first end, which counts
            total += completion_kl(policy, reference, drawn, prompt_mask, completion_mask).sum()
    return float(total) / len(prompts)
