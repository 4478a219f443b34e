"""For scripts: imported before anything that imports vLLM, as TRL does; with a GPU it does nothing."""

import engines
import torch


if not torch.cuda.is_available():
    engines.prepare_environment()
