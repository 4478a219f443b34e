"""
Train a TinySeek, a looped transformer with latent attention and many small experts: `pretrain_clm.py` with that model.

```bash
python recipes/pretrain_tinyseek.py --config recipes/configs/pretrain_tinyseek/smoke.yaml
accelerate launch recipes/pretrain_tinyseek.py --config recipes/configs/pretrain_tinyseek/paper.yaml
```

`smoke.yaml` takes half a minute on two CPU cores, on generated text; `paper.yaml` holds the published settings (one
GPU) and has not been run here. Options override the file; all of `pretrain_clm.py` are there, with fields of
`TinySeekConfig` in `config_overrides`.

The log has, next to loss and learning rate, how the experts are used (`router_max_load`, `router_load_entropy`,
`router_effective_experts`, `router_dead_experts`, `router_balance`), in training and as `eval_router_*`.

Outputs: as of `pretrain_clm.py`.
"""

from dataclasses import dataclass

from hf_evidenceflow.recipes import pretrain_clm
from hf_evidenceflow.run_folder.exit_codes import run_recipe


@dataclass
class TinySeekScriptArguments(pretrain_clm.ScriptArguments):
    """
    Differs from the arguments of `pretrain_clm.py` in the model.

    Args:
        model_type (`str`, *optional*, defaults to `"tinyseek"`):
            Type of the new model, where `model_name_or_path` names none to start from.
    """

    def __post_init__(self):
        if self.model_name_or_path is None and self.model_type is None:
            self.model_type = "tinyseek"
        super().__post_init__()


def main(argv: list[str] | None = None):
    return pretrain_clm.main(argv, TinySeekScriptArguments)


if __name__ == "__main__":
    run_recipe(main)
