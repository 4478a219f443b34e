"""How well the pretrained models do on held-out text: perplexity of both directions, masked words, next sentences."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from hf_evidenceflow.evaluation.statistics import proportion_interval


@torch.no_grad()
def evaluate_elmo(model, collator: Callable, rows: Sequence[dict], batch_size: int = 64) -> dict[str, float]:
    """
    Perplexity of both directions.

    Args:
        model ([`~recipes.course.contextual_pretraining.modeling_elmo.ElmoForLanguageModeling`]):
            Model; it is put into evaluation mode.
        collator (`Callable`):
            Its collator.
        rows (`Sequence[dict]`):
            Rows with `words`.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows of a pass.

    Returns:
        `dict[str, float]`: `forward_perplexity` and `backward_perplexity`: exp of the mean negative log-likelihood of
            a word, the end (or the begin) of the text among them; and `words`, the number predicted in each direction.
    """
    model.eval()
    totals, count = [0.0, 0.0], 0
    for start in range(0, len(rows), batch_size):
        inputs = {name: value.to(model.device) for name, value in collator(rows[start : start + batch_size]).items()}
        output, predicted = model(**inputs), int((inputs["attention_mask"].sum(1) - 1).sum())
        totals[0] += output.forward_loss.item() * predicted
        totals[1] += output.backward_loss.item() * predicted
        count += predicted
    forward, backward = (math.exp(total / count) for total in totals)
    return {"forward_perplexity": forward, "backward_perplexity": backward, "words": count}


@torch.no_grad()
def evaluate_bert(model, collator: Callable, rows: Sequence[dict], batch_size: int = 64) -> dict:
    """
    Masked words and next sentences.

    Args:
        model ([`~transformers.BertForPreTraining`]):
            Model; it is put into evaluation mode.
        collator (`Callable`):
            Masking collator with a seed, so that the same tokens are masked each time.
        rows (`Sequence[dict]`):
            Rows of pairs.
        batch_size (`int`, *optional*, defaults to `64`):
            Rows of a pass.

    Returns:
        `dict`: `mlm_loss` in nats a masked token; `mlm_accuracy` and `nsp_accuracy` with `value`, `low` and `high`;
            `masked_tokens` and `pairs`.
    """
    model.eval()
    loss, right, masked, nsp_right = 0.0, 0, 0, 0
    for start in range(0, len(rows), batch_size):
        batch = {name: value.to(model.device) for name, value in collator(rows[start : start + batch_size]).items()}
        labels, is_random = batch.pop("labels"), batch.pop("next_sentence_label")
        output = model(**batch)
        chosen = labels != -100
        logits = output.prediction_logits[chosen]
        loss += nn.functional.cross_entropy(logits, labels[chosen], reduction="sum").item()
        right += int((logits.argmax(-1) == labels[chosen]).sum())
        masked += int(chosen.sum())
        nsp_right += int((output.seq_relationship_logits.argmax(-1) == is_random).sum())
    return {
        "mlm_loss": loss / masked,
        "mlm_accuracy": proportion_interval(right, masked)._asdict(),
        "nsp_accuracy": proportion_interval(nsp_right, len(rows))._asdict(),
        "masked_tokens": masked,
        "pairs": len(rows),
    }
