"""Keeps quiet what optional packages say when they are imported: of which of their kernels this machine has none."""

import contextlib
import logging
from collections.abc import Iterator


# transformers imports torchao wherever it is installed, and PEFT bitsandbytes
_LOGGERS = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Within it, those packages log errors only; their levels come back at the end."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
