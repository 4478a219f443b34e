"""Tiny models and tokenizers, built from a seed; nothing is downloaded. Deprecated calls of ours are errors."""

import gc
import inspect
import os
import warnings
from pathlib import Path

import pytest
import torch
from tiny_models import TINY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# At these sizes a second thread only waits for the first
torch.set_num_threads(1)
# Nothing of a test has to outlive the machine, and its disk may take long
os.fsync = lambda descriptor: None


_ROOT = Path(__file__).parents[1]
_OURS = tuple(str(_ROOT / name) + os.sep for name in ("hf_evidenceflow", "patches", "recipes"))
# Between a call and the deprecated function: module calls, decorators
_BETWEEN = (os.path.join("torch", "nn", "modules", "module.py"), os.path.join("transformers", "utils") + os.sep)


def pytest_collection_finish():
    # The modules' objects stay; looking through them again and again takes a tenth of the time
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def imports_are_not_collected():
    """Neither are those of a module's tests looked through at the end of each training that follows."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def deprecations_are_errors():
    """
    What upstream calls deprecated is an error where this package calls it. A filter by module does not do: the frame
    that a warning names is mostly PyTorch's module call, or the deprecated function itself.
    """
    warn = warnings.warn

    def strict_warn(message, category=None, *args, **kwargs):
        kind = type(message) if isinstance(message, Warning) else category
        if kind is not None and issubclass(kind, (FutureWarning, DeprecationWarning)):
            frame = inspect.currentframe().f_back.f_back
            while frame is not None and any(part in frame.f_code.co_filename for part in _BETWEEN):
                frame = frame.f_back
            if frame is not None and frame.f_code.co_filename.startswith(_OURS):
                raise kind(message)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        warn(message, category, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", strict_warn)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """
    Byte-level tokenizer of 92 tokens (fewer than the tiny models have), where `####` is the two tokens `##` `##`.
    """
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)] + [chr(i) for i in range(ord("A"), ord("Z") + 1)]
    tokens = ["<pad>", "</s>", "<s>", *letters, *"0123456789+-=.,:?$%()/!'", "Ġ", "Ċ", "#", "##", "Ġ#"]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("#", "#"), ("Ġ", "#")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<s>", padding_side="left"
    )
    assert len(tokenizer) < TINY["vocab_size"]
    return tokenizer


@pytest.fixture(scope="session")
def plain_checkpoint(tmp_path_factory, tokenizer):
    """Folder with a plain tiny Qwen2 and the tokenizer."""
    path = tmp_path_factory.mktemp("plain-qwen2")
    torch.manual_seed(0)
    # A wide initialisation gives peaked distributions, in which a wrong state shows
    model = Qwen2ForCausalLM(Qwen2Config(**TINY, tie_word_embeddings=True, initializer_range=0.2))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def check_figures(monkeypatch):
    """Each figure that a test saves is read by `artists.faults`."""
    from artists import faults
    from matplotlib.figure import Figure

    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        original(self, *args, **kwargs)
        assert not (found := faults(self)), "\n".join(found)

    monkeypatch.setattr(Figure, "savefig", savefig)
