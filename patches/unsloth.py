"""Adapters of Unsloth on thinking models: the thinking modules train in fp32, and a path around them is refused.

Class patch: one object stands in for `get_peft_model` of each of Unsloth's model classes. It names the thinking
modules to the original, frees what the original leaves frozen, and runs the model once to see that it still thinks.
Models that do not think pass through untouched.
"""

import functools
import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate.utils import is_peft_model

from hf_evidenceflow.models.thinking.cache_argument import CACHE
from hf_evidenceflow.models.thinking.generation_thinking import ThinkingGenerationMixin
from hf_evidenceflow.models.thinking.thinking_residual import THINKING_MODULES, thinking_modules_in_use


CHECKED_VERSIONS = {"unsloth": ("2026.10.9",), "unsloth_zoo": ("2026.10.9",)}

_CLASSES = ("FastLanguageModel", "FastModel")


def patch_unsloth() -> "UnslothPatch":
    """
    Makes `get_peft_model` of Unsloth's `FastLanguageModel` and `FastModel` train the thinking modules of a model.

    For a thinking model, the modules that its `thinking_mode` uses are added to `modules_to_save` and kept out of
    `target_modules`, and the call goes to `FastModel`, whose general path trains whole modules and calls the model's
    own forward. Afterwards they are fp32 and trainable (Unsloth leaves modules without a `weight`, such as Lambda,
    frozen), and one forward pass without gradients checks that thinking states reach them, with a cache and without.
    Any other model, and one in the modes `soft` and `none`, gets the original call.

    The patch is needed while `get_peft_model` runs; the model keeps what it made.

    Returns:
        [`UnslothPatch`]: the handle, with `undo()`, usable in `with`.

    Raises:
        ImportError: if unsloth or unsloth_zoo is missing or of a version that this patch was not checked against.
        RuntimeError: if unsloth was imported before [`HRPOTrainer`], whose base class it then has replaced by its own.

    Example:

    ```python
    >>> from hf_evidenceflow import HRPOTrainer  # before unsloth
    >>> from unsloth import FastLanguageModel
    >>> from hf_evidenceflow.patches import patch_unsloth

    >>> model, tokenizer = FastLanguageModel.from_pretrained("qwen-thinking", load_in_4bit=True)
    >>> with patch_unsloth():
    ...     model = FastLanguageModel.get_peft_model(model, r=32, lora_alpha=64)
    ```
    """
    _check_versions()
    unsloth = importlib.import_module("unsloth")
    _check_trainer()
    return UnslothPatch([getattr(unsloth, name) for name in _CLASSES])


class UnslothPatch:
    """
    Handle of one patch, active from its construction until `undo()` or the end of its `with` block.

    Args:
        classes (`list[type]`):
            Unsloth's `FastLanguageModel` and `FastModel`; may be one class twice.
    """

    def __init__(self, classes: list[type]):
        general = _original(classes[-1])
        self._stand_ins = []
        for owner in dict.fromkeys(classes):
            installed = vars(owner).get("get_peft_model")
            stand_in = installed if isinstance(installed, _ThinkingGetPeftModel) else None
            if stand_in is None:
                stand_in = _ThinkingGetPeftModel(owner, general)
            stand_in.patches.append(self)
            self._stand_ins.append(stand_in)

    def undo(self) -> None:
        """Takes the patch back; a second call does nothing. Models that were made under it stay as they are."""
        stand_ins, self._stand_ins = self._stand_ins, []
        for stand_in in stand_ins:
            stand_in.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.undo()


class _ThinkingGetPeftModel:
    """Stands in for one class's `get_peft_model`, on behalf of all active patches."""

    def __init__(self, owner, general):
        self.owner = owner
        self.original = owner.get_peft_model
        self.shadowed = vars(owner).get("get_peft_model")  # None: inherited
        self.general = general
        self.patches = []
        functools.update_wrapper(self, self.original)  # Unsloth's signature, for those who read it
        owner.get_peft_model = self

    def __call__(self, model, *args, **kwargs):
        base = model.get_base_model() if is_peft_model(model) else model
        if not self.patches or not isinstance(base, ThinkingGenerationMixin):
            return self.original(model, *args, **kwargs)
        modules = thinking_modules_in_use(base.config.thinking_method)
        if not modules:
            return self.original(model, *args, **kwargs)
        _refuse_fast_path(base)
        if base is model:
            arguments = inspect.signature(self.original).bind(model, *args, **kwargs).arguments
            arguments |= arguments.pop("kwargs", {})
            model = self.general(**_with_thinking_modules(arguments, modules))
        else:
            model = self.original(model, *args, **kwargs)
        _train_in_fp32(model, modules)
        _check_that_it_thinks(model)
        return model

    def remove(self, patch):
        self.patches.remove(patch)
        # With another tool's wrapper on top this object must stay, and then passes through
        if self.patches or vars(self.owner).get("get_peft_model") is not self:
            return
        if self.shadowed is None:
            del self.owner.get_peft_model
        else:
            self.owner.get_peft_model = self.shadowed


def _original(owner):
    installed = owner.get_peft_model
    return installed.original if isinstance(installed, _ThinkingGetPeftModel) else installed


def _check_versions():
    for package, checked in CHECKED_VERSIONS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise ImportError(
                f"`patch_unsloth` needs {package}, which is not installed: `pip install --no-deps "
                f"{package}=={checked[-1]}` (its requirements allow older transformers and trl only)."
            ) from None
        if found not in checked:
            raise ImportError(
                f"`patch_unsloth` was checked against {package} {', '.join(checked)} and {found} is installed. "
                f"Unsloth changes from release to release, and a path around the thinking modules would not be "
                f"noticed: install {package}=={checked[-1]}, or train without Unsloth."
            )


def _check_trainer():
    trainer = importlib.import_module("hf_evidenceflow.trainers.hrpo_trainer").HRPOTrainer
    if not any(base.__name__ == "GRPOTrainer" and base.__module__.startswith("trl.") for base in trainer.__mro__):
        raise RuntimeError(
            f"HRPOTrainer is built on {trainer.__mro__[2].__name__}, since unsloth was imported first and has put its "
            "own trainers in the place of TRL's. Those compute log-probabilities without thinking states. Import "
            "`HRPOTrainer` from hf_evidenceflow before unsloth."
        )


def _refuse_fast_path(base):
    # Unsloth's fast decoding step computes the layers itself, without the model's own forward
    if any(getattr(module, "_unsloth_fast_path", False) for module in base.modules()):
        raise RuntimeError(
            f"This {type(base).__name__} runs on Unsloth's fast path, whose decoding step goes around the thinking "
            "modules. Load it with `FastLanguageModel.from_pretrained` or `FastModel.from_pretrained`, not with a "
            "class of one family."
        )


def _with_thinking_modules(arguments, modules):
    saved = arguments.get("modules_to_save") or []
    saved = [saved] if isinstance(saved, str) else list(saved)
    excluded = arguments.get("exclude_modules") or []
    if not isinstance(excluded, str):
        excluded = sorted({*excluded, *THINKING_MODULES})
    return {
        **arguments,
        "modules_to_save": [*saved, *(module for module in modules if module not in saved)],
        "exclude_modules": excluded,
    }


def _train_in_fp32(model, modules):
    missing = set(modules)
    for name, parameter in model.named_parameters():
        module = next((module for module in modules if f"{module}.modules_to_save." in name), None)
        if module is not None:
            missing.discard(module)
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
    if missing:
        raise RuntimeError(
            f"The adapter has no trained copy of {sorted(missing)}: it was made without the patch, or Unsloth's full "
            "fine-tuning is on. Call `get_peft_model` on the model without an adapter, with the patch active."
        )


@torch.no_grad()
def _check_that_it_thinks(model):
    base = model.get_base_model()
    calls = []
    hook = base.model.thinking_residual_gate_r.register_forward_hook(lambda *_: calls.append(1))
    training = model.training
    model.eval()
    try:
        device = base.get_input_embeddings().weight.device
        ids = torch.zeros(1, 2, dtype=torch.long, device=device)
        thinking = {
            "thinking_states": torch.ones(1, 1, base.config.hidden_size, device=device),
            "thinking_mask": torch.ones(1, 1, dtype=torch.bool, device=device),
        }
        cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **thinking)[CACHE]
        whole = len(calls)
        model(
            input_ids=ids[:, :1],
            attention_mask=torch.ones(1, 3, dtype=torch.long, device=device),
            **{CACHE: cache},
            use_cache=True,
            **thinking,
        )
    finally:
        hook.remove()
        model.train(training)
    if (whole, len(calls)) != (1, 2):
        where = "in a decoding step" if whole else "in a forward pass"
        raise RuntimeError(
            f"Thinking states do not reach the thinking modules {where}: Unsloth has replaced a forward of "
            f"{type(base).__name__}. Training would go on without thinking, so the model is refused. Use "
            "`HRPOTrainer(peft_config=...)` without Unsloth."
        )
