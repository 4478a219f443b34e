"""
Thinking models in lighteval: the file that its `custom` backend takes.

```bash
pip install "hf-evidenceflow[lighteval]"  # in an environment without math-verify
python -m hf_evidenceflow.integrations.lighteval custom outputs/hrpo-gsm8k,thinking_mode=projection \
    hf_evidenceflow/integrations/lighteval.py gsm8k --max-samples 200
```

The arguments are those of `lighteval`. Version 0.13 imports all of its own tasks at the start: one downloads a file,
and two ask the Hub in a way that huggingface_hub 1 does not know. Started as above it leaves those out: it runs
offline and with transformers 5.

The name of the model may be followed by options: `thinking_mode` (if not given, the checkpoint's), `batch_size`,
`max_length`, `dtype`, `revision`. It is lighteval's own `accelerate` backend with the model of
[`load_thinking_model`]: tasks that generate think, those that compare log-likelihoods do not, and with
`thinking_mode=none` both are those of the base model.
"""

import importlib.util
import logging


if importlib.util.find_spec("lighteval") is None:
    raise ImportError(
        "hf_evidenceflow.integrations.lighteval needs lighteval: pip install 'hf-evidenceflow[lighteval]', in an "
        "environment without math-verify."
    )

from lighteval.__main__ import app
from lighteval.models.transformers import transformers_model as stock  # a class here would be taken for the model
from lighteval.tasks.registry import Registry

from hf_evidenceflow.evaluation.completions import weights_fingerprint
from hf_evidenceflow.models.auto_thinking import load_thinking_model
from hf_evidenceflow.models.thinking.thinking_rollout import collect_thinking


logger = logging.getLogger(__name__)

OPTIONS = ("thinking_mode", "batch_size", "max_length", "dtype", "revision")


def read_options(name: str) -> tuple[str, dict[str, str]]:
    """Model and options of `MODEL,OPTION=VALUE,...`; a `ValueError` for an unknown option."""
    model, *given = name.split(",")
    options = dict(option.split("=", 1) if "=" in option else (option, "") for option in given)
    if unknown := options.keys() - set(OPTIONS):
        raise ValueError(
            f"A model's name is followed by options `NAME=VALUE` of {', '.join(OPTIONS)}, got {sorted(unknown)}."
        )
    return model, options


class ThinkingModel(stock.TransformersModel):
    """Differs from TransformersModel in how the model is loaded, in its thinking, and in the key of its cache."""

    def __init__(self, config):
        model, options = read_options(config.model_name)
        mode = options.pop("thinking_mode", None)
        super().__init__(
            stock.TransformersModelConfig(
                model_name=model,
                model_loading_kwargs={} if mode is None else {"thinking_mode": mode},
                generation_parameters=config.generation_parameters,
                system_prompt=config.system_prompt,
                **options,
            )
        )
        # Its key would be the name of a folder, whatever weights are in it
        weights = weights_fingerprint(self.model)
        self._cache = stock.SampleCache(self.config.model_copy(update={"revision": weights}))

    def _create_auto_model(self):
        self.config.model_parallel = False
        config = self.config
        model = load_thinking_model(
            config.model_name, dtype=config.dtype or "auto", revision=config.revision, **config.model_loading_kwargs
        )
        return model.eval()

    def _generate(self, *args, **kwargs):
        with collect_thinking(self.tokenizer):
            return super()._generate(*args, **kwargs)


def main() -> None:
    """Lighteval's command line without those of its own tasks that cannot be loaded, each named in a warning."""
    for name in ("_load_from_files", "_load_from_subdirs"):
        setattr(Registry, name, staticmethod(_each_if_loadable(getattr(Registry, name))))
    app()


def _each_if_loadable(load):
    def load_each(paths, *args):
        configs = {}
        for path in paths:
            try:
                configs |= load([path], *args)
            except Exception as error:
                logger.warning(f"lighteval's own tasks of {path.stem} are left out: {error!r}")
        return configs

    return load_each


if __name__ == "__main__":
    main()
