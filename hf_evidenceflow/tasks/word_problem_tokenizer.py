"""Tokenizers whose vocabulary is that of the self-made problems; the marker is two tokens."""

import re
from collections.abc import Sequence

from .word_problems import NAMES, OBJECTS, OPERATIONS, TEMPLATES, WordProblemTemplate


PAD_TOKEN, EOS_TOKEN, UNK_TOKEN = "<pad>", "<eos>", "<unk>"

# A word takes the space before it; a digit does not, so that each digit is one token wherever it stands
_PIECE = r" ?[A-Za-z]+|##|[^A-Za-z]"
# A node is one token, its name being no quantity
_GRAPH_PIECE = r"[0-9]+|##|[^0-9]"


def build_word_problem_tokenizer(templates: Sequence[WordProblemTemplate] = TEMPLATES):
    """
    A tokenizer for the problems of [`generate_word_problems`] of any size of numbers.

    Every token decodes to its own text, spaces included, so that decoding gives back the text that was encoded. The
    marker `####` is the token `##` twice. Words that no problem has become the unknown token.

    Args:
        templates (`Sequence[WordProblemTemplate]`, *optional*, defaults to `TEMPLATES`):
            Kinds of problems whose words it knows.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: with a pad and an end-of-text token; it adds neither on its own and
        pads on the left.

    Example:

    ```python
    >>> from hf_evidenceflow.data import build_word_problem_tokenizer

    >>> tokenizer = build_word_problem_tokenizer()
    >>> tokenizer.convert_ids_to_tokens(tokenizer("12#### 5")["input_ids"])
    ['1', '2', '##', '##', 'Ġ', '5']
    ```
    """
    return _word_level_tokenizer(_pieces(templates), _PIECE)


def build_graph_tokenizer(names: int = 20):
    """
    A tokenizer for the problems of [`generate_graph_problems`]: each node is one token.

    Args:
        names (`int`, *optional*, defaults to `20`):
            Numbers that nodes are named with.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: as [`build_word_problem_tokenizer`].

    Example:

    ```python
    >>> from hf_evidenceflow.data import build_graph_tokenizer

    >>> tokenizer = build_graph_tokenizer()
    >>> tokenizer.convert_ids_to_tokens(tokenizer("12>4#### 5")["input_ids"])
    ['12', '>', '4', '##', '##', 'Ġ', '5']
    ```
    """
    return _word_level_tokenizer([*map(str, range(names)), "##", *">;?:,", "Ġ", "Ċ"], _GRAPH_PIECE)


def _word_level_tokenizer(pieces: Sequence[str], pattern: str):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate((PAD_TOKEN, EOS_TOKEN, UNK_TOKEN, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _pieces(templates: Sequence[WordProblemTemplate]) -> list[str]:
    """All pieces of the problems in the byte-level alphabet, in a fixed order."""
    sentences = [
        sentence
        for template in templates
        for sentence in (template.opening, template.add, template.subtract, template.multiply, template.question)
    ]
    text = " ".join([*sentences, *NAMES, *OBJECTS]).replace("{name}", "").replace("{objects}", "").replace("{n}", "")
    words = sorted(set(re.findall("[A-Za-z]+", text)))
    symbols = sorted(set(re.findall("[^A-Za-z ]", text)) | {"=", "\n", " ", *OPERATIONS.values()})
    pieces = [*"0123456789", "##", *symbols, *words, *(" " + word for word in words)]
    return [piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces]
