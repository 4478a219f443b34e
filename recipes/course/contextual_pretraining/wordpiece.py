"""A WordPiece tokenizer trained on the text, and BERT's rows from pairs of segments.

Source: Devlin et al. 2019 (arXiv 1810.04805, section 3 and figure 2).
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_evidenceflow.recipes.course.contextual_pretraining.next_sentence import SegmentPair


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Train a lower-casing WordPiece tokenizer, as BERT's.

    Args:
        documents (`Iterable[str]`):
            Text.
        vocab_size (`int`):
            Tokens, the five special ones and the characters among them.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: the tokenizer; the same text gives the same one.

    Raises:
        `ValueError`: if `vocab_size` has no room for the characters of the text.
    """
    documents = list(documents)
    normalizer = normalizers.BertNormalizer(lowercase=True)
    alphabet = sorted({letter for text in documents for letter in normalizer.normalize_str(text)} - set(" \t\n\r"))
    # The trainer numbers the pieces of one letter in an order that changes from process to process, and with it what
    # equally frequent pairs become; given as if they were special tokens they keep the order of the alphabet.
    first = [*SPECIAL_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet)]
    if vocab_size < len(first):
        raise ValueError(
            f"`vocab_size` must be at least {len(first)} (5 special tokens and {len(alphabet)} characters, each at "
            f"the begin of a word and inside), got {vocab_size}."
        )
    draft = _backend(models.WordPiece(unk_token="[UNK]"), normalizer)
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    draft.train_from_iterator(documents, trainer)
    backend = _backend(models.WordPiece(draft.get_vocab(), unk_token="[UNK]"), normalizer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    cls, sep = (backend.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    backend.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="right",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL_TOKENS)),
    )


def _backend(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Tokenizer:
    backend = Tokenizer(model)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def tokenize_sentences(tokenizer, documents: Sequence[Sequence[str]]) -> list[list[list[tuple[int, tuple[int, int]]]]]:
    """
    Sentences as tokens with their offsets.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]):
            Tokenizer.
        documents (`Sequence[Sequence[str]]`):
            Sentences of each document.

    Returns:
        `list[list[list[tuple]]]`: for each document and sentence, its tokens: id, and begin and end in the sentence.
    """
    flat = [sentence for sentences in documents for sentence in sentences]
    encoded = tokenizer(flat, add_special_tokens=False, return_offsets_mapping=True)
    rows = iter([list(zip(*row)) for row in zip(encoded["input_ids"], encoded["offset_mapping"])])
    return [[next(rows) for _ in sentences] for sentences in documents]


def pair_row(tokenizer, pair: SegmentPair) -> dict[str, list]:
    """
    A pair as BERT reads it: [CLS] first [SEP] second [SEP], where segment 0 goes up to the first [SEP].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer, for its special tokens.
        pair ([`SegmentPair`]):
            Segments of tokens from [`tokenize_sentences`].

    Returns:
        `dict[str, list]`: `input_ids`, `token_type_ids`, `special_tokens_mask`, `offset_mapping`, and
        `next_sentence_label`, which is 0 if the second follows the first, and 1 if not.
    """
    special = (0, 0)
    cls, sep = (tokenizer.cls_token_id, special), (tokenizer.sep_token_id, special)
    tokens = [cls, *pair.first, sep, *pair.second, sep]
    first = len(pair.first) + 2
    marks = [0] * len(tokens)
    for place in (0, first - 1, len(tokens) - 1):
        marks[place] = 1
    return {
        "input_ids": [token for token, _ in tokens],
        "token_type_ids": [0] * first + [1] * (len(tokens) - first),
        "special_tokens_mask": marks,
        "offset_mapping": [tuple(span) for _, span in tokens],
        "next_sentence_label": int(not pair.is_next),
    }
