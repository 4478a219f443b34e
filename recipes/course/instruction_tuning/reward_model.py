"""A reward model as TRL's trainers should ask it: on the text it was trained on, the end of sequence included."""

from collections.abc import Callable

import torch


def reward_model_function(model, tokenizer, batch_size: int = 64) -> Callable[..., list[float]]:
    """
    A reward function for TRL's trainers from a reward model.

    `RewardTrainer` learns the score at the end-of-sequence token, which it appends. Given the model itself, GRPO asks
    for the score of the text without that token, at a place where none was learnt; the function appends it to the
    completions that have ended.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Sequence classifier with one output.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows of a pass.

    Returns:
        `Callable`: takes `prompts`, `completions` and `completion_ids`, lists of plain texts and of token ids, and
            gives a list of scores.
    """
    model.eval()

    @torch.no_grad()
    def reward_model_score(prompts, completions, completion_ids, **kwargs) -> list[float]:
        end = tokenizer.eos_token_id
        texts = [
            prompt + completion + (tokenizer.eos_token if end in ids else "")
            for prompt, completion, ids in zip(prompts, completions, completion_ids)
        ]
        scores = []
        for start in range(0, len(texts), batch_size):
            rows = texts[start : start + batch_size]
            batch = tokenizer(
                rows, padding=True, padding_side="right", add_special_tokens=False, return_tensors="pt"
            ).to(model.device)
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            scores += model(**inputs).logits[:, 0].tolist()
        return scores

    return reward_model_score
