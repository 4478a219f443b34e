"""BERT's masking of whole words: 80 % [MASK], 10 % another token, 10 % as it was.

All pieces of a chosen word are to be predicted; each of them is replaced on its own, as in the authors' code.

Source: Devlin et al. 2019 (arXiv 1810.04805, section 3.1); whole words: the authors' repository, May 2019.
"""

from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForLanguageModeling


@dataclass
class WholeWordMaskingCollator(DataCollatorForLanguageModeling):
    """
    Differs from `DataCollatorForLanguageModeling` in two ways: it keeps the shares that it is given, which
    Transformers 5 sets to 100 % [MASK] for whole words, and it pads the offsets, which the tokenizer leaves as they
    are. Rows need `input_ids`, `special_tokens_mask` and `offset_mapping`: pieces that touch are one word.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that pads at the right.
        mlm_probability (`float`, *optional*, defaults to `0.15`):
            Share of the words that are chosen.
        mask_replace_prob, random_replace_prob (`float`, *optional*, default to `0.8` and `0.1`):
            Shares of the chosen tokens that become [MASK] and another token.
        seed (`int`, *optional*):
            Seed of the draws; `None`: torch's.
    """

    whole_word_mask: bool = True

    def __post_init__(self):
        shares = (self.mask_replace_prob, self.random_replace_prob)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(
                "`mask_replace_prob` and `random_replace_prob` must be at least 0 and sum to at most 1, got "
                f"{shares[0]} and {shares[1]}."
            )
        if self.tokenizer.padding_side != "right":
            raise ValueError("`tokenizer` must pad at the right. Set `tokenizer.padding_side = 'right'`.")
        self.mask_replace_prob, self.random_replace_prob = 1.0, 0.0
        super().__post_init__()
        self.mask_replace_prob, self.random_replace_prob = shares

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(example["input_ids"]) for example in examples)
        if self.pad_to_multiple_of:
            longest += -longest % self.pad_to_multiple_of
        padded = [
            {
                **example,
                "offset_mapping": [*example["offset_mapping"]] + [(0, 0)] * (longest - len(example["input_ids"])),
            }
            for example in examples
        ]
        return super().torch_call(padded)
