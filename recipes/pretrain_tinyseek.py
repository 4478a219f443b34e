"""
Train a TinySeek, a looped transformer with latent attention and many small experts: `pretrain_clm.py` with that model.

```bash
python recipes/pretrain_tinyseek.py --config recipes/configs/pretrain_tinyseek/smoke.yaml
accelerate launch recipes/pretrain_tinyseek.py --config recipes/configs/pretrain_tinyseek/paper.yaml
```

`smoke.yaml` takes half a minute on two CPU cores, on generated text; `paper.yaml` holds the published settings (one
GPU) and has not been run here. Options override the file; all of `pretrain_clm.py` are there, with fields of
`TinySeekConfig` in `config_overrides`. A published configuration file gives the model's sizes:

```bash
python recipes/pretrain_tinyseek.py --original_config shared_model_config.json --train_file train.txt \
    --validation_file validation.txt --train_vocab_size 5000 --max_steps 500 --output_dir outputs/tinyseek
```

The log has, beside loss and learning rate, how the experts are used (`router_max_load`, `router_load_entropy`,
`router_dead_experts`, `router_balance`), in training and as `eval_router_*`.

Outputs: as of `pretrain_clm.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pretrain_clm

from hf_evidenceflow.models.tinyseek.convert_tinyseek import convert_original_config, read_json


@dataclass
class TinySeekScriptArguments(pretrain_clm.ScriptArguments):
    """
    Differs from the arguments of `pretrain_clm.py` in the model.

    Args:
        model_type (`str`, *optional*, defaults to `"tinyseek"`):
            Type of the new model, where `model_name_or_path` names none to start from.
        original_config (`str`, *optional*):
            JSON configuration of a published TinySeek, in place of fields of `config_overrides`; those override it.
            Its `vocab_size` and `pad_idx` give way to the tokenizer's.
    """

    original_config: str | None = None

    def __post_init__(self):
        if self.model_name_or_path is None and self.model_type is None:
            self.model_type = "tinyseek"
        super().__post_init__()
        if self.original_config is not None:
            if self.model_type != "tinyseek":
                raise ValueError("`original_config` describes a new TinySeek: leave out the other model.")
            published = convert_original_config(read_json(Path(self.original_config))).to_diff_dict()
            for name in ("vocab_size", "pad_token_id", "model_type", "transformers_version"):
                published.pop(name, None)
            self.config_overrides = published | self.config_overrides


def main(argv: list[str] | None = None):
    return pretrain_clm.main(argv, TinySeekScriptArguments)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
