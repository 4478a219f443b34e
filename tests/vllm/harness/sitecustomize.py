"""Python imports this in each process that vLLM starts, since the folder is in PYTHONPATH."""

import triton_backend


triton_backend.install()
