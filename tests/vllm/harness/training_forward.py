"""What vLLM recorded of a completion against the training forward of transformers."""

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


@torch.no_grad()
def compare(model, output, completion, states, mask, sampling):
    """Largest gaps of raw log-probabilities and, relative to their size, of states."""
    ids, count = [*output.prompt_token_ids, *completion.token_ids], len(completion.token_ids)
    hidden = model.model(
        torch.tensor([ids]), thinking_states=states[None], thinking_mask=mask[None]
    ).last_hidden_state[0, -count - 1 : -1]
    logits = model.lm_head(hidden)
    tokens = torch.tensor(completion.token_ids)[:, None]
    logps = torch.tensor([row[token].logprob for row, token in zip(completion.logprobs, completion.token_ids)])
    gaps = logits.log_softmax(-1).gather(1, tokens).squeeze(1) - logps
    expected = expected_states(model, hidden, logits, sampling)
    offset = (expected - states)[mask].abs().max() / expected.abs().max()
    return gaps.abs().max().item(), offset.item()


def expected_states(model, hidden, logits, sampling):
    if not model.config.thinking_method.reads_distribution:
        return hidden
    warpers = LogitsProcessorList()
    if sampling:
        warpers.append(TemperatureLogitsWarper(sampling["temperature"]))
    if "top_k" in sampling:
        warpers += [TopKLogitsWarper(sampling["top_k"]), TopPLogitsWarper(sampling["top_p"])]
    probs = warpers(None, logits).softmax(-1)
    states = probs @ model.get_input_embeddings().weight
    return states if model.config.thinking_mode == "soft" else states / probs.norm(dim=-1, keepdim=True)
