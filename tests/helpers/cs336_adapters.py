"""Adapter between this package and the tests of CS336's first assignment (tokenizer training and encoding).

```bash
git clone https://github.com/stanford-cs336/assignment1-basics
cp tests/helpers/cs336_adapters.py assignment1-basics/tests/adapters.py
cd assignment1-basics && python -m pytest tests/test_train_bpe.py tests/test_tokenizer.py
```

Needs tiktoken and psutil. The other tests of the assignment are about a model written by hand, which is not what this
package has. `test_adapters.py` beside this file runs the adapter without the assignment.
"""

import re
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_evidenceflow.tokenization.byte_level_codec import ByteLevelCodec
from hf_evidenceflow.tokenization.exact_bpe import train_merges
from hf_evidenceflow.tokenization.pretokens import count_pretokens


LETTERS = bytes_to_unicode()


def spell(token):
    return "".join(LETTERS[byte] for byte in token)


class AssignmentTokenizer:
    """A [`ByteLevelCodec`] with the assignment's three methods."""

    def __init__(self, codec):
        self.codec = codec

    def encode(self, text):
        return self.codec.encode(text.encode()).tolist()

    def encode_iterable(self, texts):
        held = ""
        for text in texts:
            # Only a lone line break between printable characters surely ends a pre-token
            if re.search(r"[!-~]\n\Z", held) and re.match("[!-~]", text):
                yield from self.encode(held)
                held = ""
            held += text
        yield from self.encode(held)

    def decode(self, ids):
        return self.codec.decode(ids).decode(errors="replace")


def get_tokenizer(vocab, merges, special_tokens=None):
    special = set(special_tokens or [])
    names = {
        token.decode() if token.decode(errors="ignore") in special else spell(token): i for i, token in vocab.items()
    }
    backend = Tokenizer(models.BPE(vocab=names, merges=[(spell(a), spell(b)) for a, b in merges]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
        return AssignmentTokenizer(ByteLevelCodec(folder))


def run_train_bpe(input_path, vocab_size, special_tokens, **kwargs):
    words = count_pretokens([input_path], special_tokens)
    merges = train_merges(words, vocab_size - 256 - len(special_tokens))
    tokens = [*(token.encode() for token in special_tokens), *(bytes([byte]) for byte in range(256))]
    tokens += [left + right for left, right in merges]
    return dict(enumerate(tokens)), merges
