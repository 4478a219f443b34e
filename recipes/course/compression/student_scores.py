"""How close a student is to its teacher on prompts: both KLs of completions, and the teacher's view of samples."""

import math

import torch

from hf_evidenceflow.evaluation.statistics import mean_t_interval
from hf_evidenceflow.losses.minillm import token_logps
from hf_evidenceflow.recipes.course.instruction_tuning.policy_kl import completion_kl
from hf_evidenceflow.trainers.mixed_sampling import sample_mixed


@torch.no_grad()
def score_student(
    student, teacher, tokenizer, prompt_ids: torch.Tensor, max_new_tokens: int, seed: int = 0
) -> dict[str, float | dict]:
    """
    Score a student on completions that it draws, and on completions that its teacher draws.

    Args:
        student, teacher ([`~transformers.PreTrainedModel`]):
            Causal LMs with the same vocabulary, in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Their tokenizer.
        prompt_ids (`torch.Tensor` of shape `(B, P)`):
            Prompts of one length, without padding.
        max_new_tokens (`int`):
            Longest completion.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws; the global random state is left as it was.

    Returns:
        `dict`: `reverse_kl`, KL(student || teacher) on the student's completions, and `forward_kl`, KL(teacher ||
        student) on the teacher's, in nats a completion, each with `value`, `low` and `high` over the prompts (95 %);
        `teacher_perplexity`, the teacher's perplexity a token on the student's completions; `tokens`, their mean
        length.
    """
    prompt_mask = torch.ones_like(prompt_ids)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kls, drawn = {}, {}
    with torch.random.fork_rng([prompt_ids.device] if prompt_ids.device.type == "cuda" else []):
        for name, one, other in (("reverse_kl", student, teacher), ("forward_kl", teacher, student)):
            torch.manual_seed(seed)
            tokens, mask, _ = sample_mixed(one, other, prompt_ids, prompt_mask, 0.0, max_new_tokens, **ends)
            ids = torch.cat([prompt_ids, tokens], dim=1)
            interval = mean_t_interval(completion_kl(one, other, ids, prompt_mask, mask).tolist())
            kls[name] = {"value": interval.value, "low": interval.low, "high": interval.high}
            drawn[name] = ids, tokens, mask
    ids, tokens, mask = drawn["reverse_kl"]
    logits = teacher(
        input_ids=ids, attention_mask=torch.cat([prompt_mask, mask], dim=1), logits_to_keep=tokens.shape[1] + 1
    ).logits[:, :-1]
    mean = ((token_logps(logits, tokens) * mask).sum() / mask.sum()).item()
    return {**kls, "teacher_perplexity": math.exp(-mean), "tokens": mask.sum().item() / len(mask)}
