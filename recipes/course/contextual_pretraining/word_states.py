"""The frozen vectors of a word in its text, in every layer of ELMo and of BERT.

Shapes: N examples, L layers, H size.
"""

from collections.abc import Sequence

import torch

from hf_evidenceflow.recipes.course.contextual_pretraining.elmo_data import ElmoCollator
from hf_evidenceflow.recipes.course.contextual_pretraining.story_probe import StoryExample


@torch.no_grad()
def elmo_states(model, collator: ElmoCollator, examples: Sequence[StoryExample], batch_size: int = 64) -> torch.Tensor:
    """
    ELMo's layers at the words of the examples.

    Args:
        model ([`~recipes.course.contextual_pretraining.modeling_elmo.ElmoForLanguageModeling`]):
            Model; it is put into evaluation mode.
        collator ([`~recipes.course.contextual_pretraining.elmo_data.ElmoCollator`]):
            Its collator.
        examples (`Sequence[StoryExample]`):
            Texts and places.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts of a pass.

    Returns:
        `torch.Tensor` of shape `(N, L + 1, 2 H)`: the word's own vector first, which knows no context.
    """
    model.eval()
    found = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        inputs = collator([{"words": example.words} for example in batch])
        inputs = {name: value.to(model.device) for name, value in inputs.items() if name != "labels"}
        layers = torch.stack(model(**inputs).hidden_states, dim=2)  # [B, T, L + 1, 2 H]
        # The begin of the text is word 0
        found += [layers[row, example.place + 1].cpu() for row, example in enumerate(batch)]
    return torch.stack(found)


@torch.no_grad()
def bert_states(model, tokenizer, examples: Sequence[StoryExample], batch_size: int = 64) -> torch.Tensor:
    """
    BERT's layers at the words of the examples, the mean over a word's pieces.

    Args:
        model ([`~transformers.BertModel`]):
            Encoder; it is put into evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Its tokenizer.
        examples (`Sequence[StoryExample]`):
            Texts and places. The text is cut behind the sentence, at a `.`, that is nearest to its middle, and read
            as two segments, as in pretraining.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts of a pass.

    Returns:
        `torch.Tensor` of shape `(N, L + 1, H)`: the embedding of the word alone first, without position and segment.

    Raises:
        `ValueError`: if a word has no piece, because the text is longer than the model reads.
    """
    model.eval()
    limit = model.config.max_position_embeddings
    found = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        borders = [_middle(example.words) for example in batch]
        encoded = tokenizer(
            [example.words[:border] for example, border in zip(batch, borders)],
            [example.words[border:] for example, border in zip(batch, borders)],
            is_split_into_words=True,
            truncation=True,
            max_length=limit,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        layers = model(**encoded, output_hidden_states=True).hidden_states[1:]
        static = model.embeddings.word_embeddings(encoded["input_ids"])
        stacked = torch.stack([static, *layers], dim=2)  # [B, T, L + 1, H]
        for row, (example, border) in enumerate(zip(batch, borders)):
            segment = int(example.place >= border)
            word = example.place - border * segment
            pieces = [
                place
                for place, (index, side) in enumerate(zip(encoded.word_ids(row), encoded.sequence_ids(row)))
                if index == word and side == segment
            ]
            if not pieces:
                raise ValueError(
                    f"The word {example.words[example.place]!r} is cut off: the text has {len(example.words)} words, "
                    f"and the model reads {limit} tokens. Raise `max_length`."
                )
            found.append(stacked[row, pieces].mean(0).cpu())
    return torch.stack(found)


def _middle(words: Sequence[str]) -> int:
    """The place behind the full stop that is nearest to the middle; the middle if there is none."""
    ends = [place + 1 for place, word in enumerate(words[:-1]) if word == "."]
    return min(ends, key=lambda end: abs(2 * end - len(words)), default=max(1, len(words) // 2))
