"""
Which decoders of the installed transformers can think: every check on a tiny random model of each type, written into
the table of docs/which_models.md.

```bash
python benchmarks/family_survey.py
```

Some minutes on one CPU core, offline.
"""

import argparse
import logging
import os
import re
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_evidenceflow.models.family_check import TinyFamily, failing_check
from hf_evidenceflow.rollouts.support import attention_reason, layers_reason


PAGE = Path(__file__).parents[1] / "docs" / "which_models.md"
BEGIN, END = "<!-- survey -->", "<!-- end of survey -->"
_LONGEST = 160


def survey(model_type: str) -> tuple[str, str, str]:
    """Whether a type thinks, runs in the rollout engine, and computes thoughts with gradients: yes, or why not."""
    try:
        config = CONFIG_MAPPING[model_type]().get_text_config(decoder=True)
    except Exception as error:
        return f"`config`: {_short(error)}", "", ""
    if error := failing_check(config):
        return f"`{error.check}`: {_short(error)}", "", ""
    torch.manual_seed(0)
    model = TinyFamily(config).thinking
    try:
        reason = layers_reason(model) or attention_reason(model)
    except Exception as error:
        reason = error
    thinks = "yes" if config.model_type == model_type else f"yes, as `{config.model_type}`"
    return thinks, f"stock loop: {_short(reason)}" if reason else "yes", latent_training(model)


def latent_training(model) -> str:
    """Whether gradients flow through thoughts that wait for each other."""
    model.config.thinking_mode = "coconut"
    ids = torch.tensor([[9, 17, 5, 31, 44, 8]])
    latent = torch.tensor([[False, False, True, True, False, False]])
    try:
        model(ids, latent_mask=latent).logits[:, -1].log_softmax(-1)[:, 3].sum().backward()
    except Exception as error:
        return _short(error)
    gradient = model.get_input_embeddings().weight.grad
    return "yes" if gradient is not None and gradient[9].any() else "no gradient"


def _short(error) -> str:
    text = " ".join(str(error).split()).replace("|", "/").replace("`", "'")
    kind = "" if type(error).__name__ in ("str", "ValueError", "FamilyError") else f"{type(error).__name__}: "
    text = kind + (text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...")
    return re.sub(r"([*_<>\[\]])", r"\\\1", text)


def table(model_types) -> str:
    """The table of these types, in Markdown."""
    rows = {}
    for model_type in model_types:
        rows[model_type] = survey(model_type)
        print(model_type, *rows[model_type], sep=" | ", flush=True)
    passed = sum(row[0].startswith("yes") for row in rows.values())
    lines = [f"{passed} of {len(rows)} types of transformers {transformers.__version__} pass.", ""]
    lines += ["| type | thinks | rollout engine | latent training |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {' | '.join(row)} |" for name, row in sorted(rows.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("types", nargs="*", help="model types; by default all, and the page is written")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    written = table(arguments.types or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if not arguments.types:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
