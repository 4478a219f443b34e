"""Checks on a tiny random model that the decoders of a type can think, before a checkpoint of it is loaded."""

import contextlib
import hashlib
import os
from collections.abc import Callable

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedConfig

from ..atomic_write import atomic_write_json
from ..files import read_json
from ..version import __version__
from .thinking.families import thinking_family
from .thinking.thinking_residual import THINKING_MODULES, thinking_modules_in_use
from .thinking.thinking_state import ThinkingRecorder
from .tiny_config import tiny_config


_IDS = torch.tensor([[0, 0, 9, 17, 5, 31, 44], [23, 7, 9, 40, 12, 8, 51]])
_MASK = (_IDS > 0).long()
_NEW_TOKENS = 5
_TOLERANCE = 1e-4  # of the largest logit, in fp32
_OPEN_GATES = {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1}


class FamilyError(ValueError):
    """A type of decoders fails a check; `check` is its name in [`CHECKS`]."""

    def __init__(self, check: str, reason: str):
        super().__init__(reason)
        self.check = check


class TinyFamily:
    """A tiny model of a plain config's type that thinks, and the plain one with the same weights."""

    def __init__(self, config: PreTrainedConfig):
        if config.sub_configs:  # such as towers for images, which would be built at full size
            raise ValueError(f"its config holds others, of which no tiny one is made: {sorted(config.sub_configs)}")
        classes = thinking_family(config.model_type)
        settings = {"thinking_count": 3, "thinking_placeholder_id": 4, **_OPEN_GATES}
        tiny = tiny_config(config)
        self.thinking = classes.causal_lm(classes.config.from_dict({**tiny.to_dict(), **settings})).eval()
        self.thinking.generation_config.eos_token_id = None
        self.plain = classes.causal_lm.__bases__[-1](tiny).eval()
        weights = {
            name: tensor
            for name, tensor in self.thinking.state_dict().items()
            if not any(part in name for part in THINKING_MODULES)
        }
        self.plain.load_state_dict(weights)

    def logits(self, mode: str, **inputs):
        self.thinking.config.thinking_mode = mode
        return self.thinking(attention_mask=_MASK, use_cache=False, **inputs).logits


def check_arguments(family: TinyFamily) -> None:
    """The causal LM hands further arguments on to its base model."""
    recorder = ThinkingRecorder()
    family.logits("projection", input_ids=_IDS, thinking_recorder=recorder)
    if recorder.hidden is None:
        raise ValueError(f"{type(family.plain).__name__} does not hand keyword arguments on to its base model")


def check_none(family: TinyFamily) -> None:
    """Mode `none`, and any mode without thoughts, is bit-equal to the plain model."""
    plain = family.plain(_IDS, attention_mask=_MASK, use_cache=False).logits
    size = family.thinking.config.hidden_size
    thoughts = {"thinking_states": torch.ones(2, 3, size), "thinking_mask": torch.ones(2, 3, dtype=torch.bool)}
    for mode, inputs in (("none", thoughts), ("projection", {})):
        if not torch.equal(family.logits(mode, input_ids=_IDS, **inputs), plain):
            raise ValueError(f"the logits of mode {mode!r} without thoughts are not those of the plain model")


def check_embeddings(family: TinyFamily) -> None:
    """A mean embedding with all its weight on one token is that token's input."""
    expected = family.logits("none", input_ids=_IDS)
    states = family.thinking.get_input_embeddings().weight[_IDS]
    mask = torch.ones_like(_IDS, dtype=torch.bool)
    mask[:, :2] = False  # next to tokens that are fed as ever
    _compare(family.logits("soft", input_ids=_IDS, thinking_states=states, thinking_mask=mask), expected)


def check_replay(family: TinyFamily) -> None:
    """A pass over a rollout's tokens and states gives the logits that the rollout had."""
    model = family.thinking
    for mode in ("projection", "soft", "coconut"):
        model.config.thinking_mode = mode
        rollout = model.generate(
            _IDS,
            attention_mask=_MASK,
            max_new_tokens=_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found = model(rollout.sequences, **_thoughts(rollout)).logits[:, -_NEW_TOKENS - 1 : -1]
        _compare(found, torch.stack(rollout.logits, 1), f"mode {mode!r}: ")


def check_gradients(family: TinyFamily) -> None:
    """Gradients reach each thinking module."""
    model = family.thinking
    model.config.thinking_mode = "projection"
    rollout = model.generate(_IDS, attention_mask=_MASK, max_new_tokens=_NEW_TOKENS, return_dict_in_generate=True)
    with torch.enable_grad():
        logits = model(rollout.sequences, **_thoughts(rollout)).logits[:, -2:]
        logits.log_softmax(-1).square().mean().backward()
    for name, parameter in model.named_parameters():
        if any(part in name for part in thinking_modules_in_use(model.config.thinking_method)):
            gradient = parameter.grad
            if gradient is None or not gradient.isfinite().all() or not gradient.any():
                raise ValueError(f"no gradient reaches `{name}`")


CHECKS: dict[str, Callable[[TinyFamily], None]] = {
    "arguments": check_arguments,
    "none": check_none,
    "embeddings": check_embeddings,
    "replay": check_replay,
    "gradients": check_gradients,
}


def _thoughts(rollout):
    mask = torch.cat([_MASK, torch.ones(len(_MASK), _NEW_TOKENS, dtype=torch.long)], 1)
    states, fused = rollout.thinking_states.detach(), rollout.thinking_mask
    return {"attention_mask": mask, "use_cache": False, "thinking_states": states, "thinking_mask": fused}


def _compare(found, expected, where=""):
    rows = _MASK.bool() if found.shape[1] == _MASK.shape[1] else slice(None)  # what padding gives is nobody's
    gap = ((found - expected)[rows].abs().max() / expected[rows].abs().max()).item()
    if not gap <= _TOLERANCE:  # NaN is not
        raise ValueError(f"{where}logits are off by {gap:.2g} of the largest, tolerance {_TOLERANCE:.0e}")


@torch.no_grad()
def failing_check(config: PreTrainedConfig) -> FamilyError | None:
    """
    What keeps the decoders of a plain config from thinking, or `None`; a second or two on a CPU.

    Args:
        config ([`~transformers.PreTrainedConfig`]): config of a plain decoder; only its features count, no size.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        try:
            family = TinyFamily(config)
        except Exception as error:
            return _failure("construction", error)
        for name, check in CHECKS.items():
            try:
                check(family)
            except Exception as error:
                return _failure(name, error)
    return None


def _failure(check, error):
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return FamilyError(check, f"{kind}{' '.join(str(error).split())}")


def require_thinking(config: PreTrainedConfig, name: str) -> None:
    """
    Refuse a checkpoint `name` of a type of decoders that fails a check. What has passed is remembered on disk, by the
    versions of this package, transformers and torch.

    Raises:
        `FamilyError`: if a check fails; it says which.
    """
    key = _features(config)
    versions = f"{__version__} {transformers.__version__} {torch.__version__}"
    path = os.path.join(HF_HOME, "hf_evidenceflow", "checked_families.json")
    passed = _passed(path)
    if versions in passed.get(key, []):
        return
    if error := failing_check(config):
        raise FamilyError(
            error.check,
            f"`{name}` is a checkpoint of type `{config.model_type}`, which cannot think: a tiny one of its kind "
            f"fails the check `{error.check}` ({error}). Take one of a type that passes (docs/which_models.md), or "
            "correct its config if that is at fault.",
        )
    _remember(path, {**passed, key: [*passed.get(key, []), versions]})


def _features(config) -> str:
    """What tells a config from those of the same type that have other features."""
    with contextlib.suppress(Exception):  # no tiny config can be made: the check says why
        config = tiny_config(config)
    digest = hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest()
    return f"{config.model_type} {digest[:16]}"


def _passed(path):
    try:
        return read_json(path)
    except (OSError, ValueError):  # another process may not have written it yet
        return {}


def _remember(path, passed):
    with contextlib.suppress(OSError):  # a home that cannot be written to: it is checked again
        atomic_write_json(path, passed)
