"""What a policy is worth on held-out questions: right answers, the reward model's score, and its distance."""

from collections.abc import Callable, Sequence

from hf_evidenceflow.evaluation.completions import generate_completions
from hf_evidenceflow.evaluation.statistics import mean_interval
from hf_evidenceflow.recipes.course.instruction_tuning.policy_kl import sampled_kl
from hf_evidenceflow.tasks.gsm8k import grade


def evaluate_policy(
    policy,
    reference,
    tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    score: Callable[..., list[float]],
    num_samples: int,
    max_new_tokens: int,
    seed: int = 0,
) -> dict:
    """
    Draw completions of a policy and measure them.

    Args:
        policy, reference ([`~transformers.PreTrainedModel`]):
            Causal LM to measure, and the one that it started from.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of both.
        prompts, answers (`Sequence[str]`):
            Questions and their right answers.
        score (`Callable`):
            Reward function, such as that of [`reward_model_function`].
        num_samples (`int`):
            Completions a question.
        max_new_tokens (`int`):
            Longest completion.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `dict`: `accuracy` (`value`, `low` and `high`, the 95 % interval over questions), `reward` (mean score) and
            `kl` (nats a completion).
    """
    right, scores = [0.0] * len(prompts), []
    for batch in generate_completions(
        policy,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=400,
        num_samples=num_samples,
        do_sample=True,
        seed=seed,
    ):
        ended = [[tokenizer.eos_token_id] if item.finished else [] for item in batch]
        scores += score([item.prompt for item in batch], [item.text for item in batch], ended)
        for item in batch:
            right[item.index] += grade(item.text, answers[item.index]) / num_samples
    return {
        "accuracy": mean_interval([min(rate, 1.0) for rate in right])._asdict(),
        "reward": sum(scores) / len(scores),
        "kl": sampled_kl(policy.eval(), reference.eval(), tokenizer, list(prompts), max_new_tokens, seed=seed),
    }
