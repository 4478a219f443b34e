"""
Thinking models in lm-evaluation-harness: registers the model `thinking-hf` and starts the harness's own command line.

```bash
pip install lm-eval
python -m hf_evidenceflow.integrations.lm_eval --model thinking-hf \
    --model_args pretrained=outputs/hrpo-gsm8k,thinking_mode=projection --tasks gsm8k --batch_size 16
```

Tasks that generate think: the harness's stock greedy or sampled generation, each completion with its states, or for a
checkpoint with a `thinking_count` after so many thoughts, which count as generated tokens. Tasks
that compare log-likelihoods do not: a prompt is never fused, and a given continuation has no states, so their scores
are those of the base model. With `thinking_mode=none` both are exactly those of `--model hf` with the base model.
"""

import importlib.util

import torch

from ..data.tokenizer_loading import load_tokenizer
from ..models.auto_thinking import load_thinking_model
from ..models.thinking.thinking_rollout import collect_thinking
from ..run_folder.exit_codes import run_recipe


if importlib.util.find_spec("lm_eval") is None:
    raise ImportError("hf_evidenceflow.integrations.lm_eval needs lm-evaluation-harness: pip install lm-eval.")

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM


@register_model("thinking-hf")
class ThinkingLM(HFLM):
    """
    The harness's `hf` model over a thinking model.

    Args:
        pretrained (`str`):
            Hub name or folder of a thinking checkpoint, a plain one (its thinking modules are fresh) or an adapter.
        thinking_mode (`str`, *optional*):
            Mode of the model; if not given, the checkpoint's.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of the weights.
        device (`str`, *optional*, defaults to `"cuda"`):
            Device; the CPU where there is no other.
        revision (`str`, *optional*, defaults to `"main"`):
            Revision on the Hub.
        kwargs:
            Other arguments of [`HFLM`] that do not tell how to load a model, such as `batch_size` or `max_length`.
    """

    def __init__(
        self,
        pretrained: str,
        thinking_mode: str | None = None,
        dtype: str = "auto",
        device: str = "cuda",
        revision: str = "main",
        **kwargs,
    ):
        fields = {} if thinking_mode is None else {"thinking_mode": thinking_mode}
        model = load_thinking_model(pretrained, dtype=dtype, revision=revision, **fields)
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        tokenizer = load_tokenizer(pretrained, revision=revision)
        super().__init__(pretrained=model.to(device).eval(), tokenizer=tokenizer, backend="causal", **kwargs)

    def _model_generate(self, context, max_length, stop, **generation_kwargs):
        with collect_thinking(self.tokenizer):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)


if __name__ == "__main__":
    run_recipe(cli_evaluate)
