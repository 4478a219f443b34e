"""
Thinking models behind `transformers serve`: registers the model types, then hands over to transformers' command line.

```bash
pip install 'transformers[serving]'
python -m hf_evidenceflow.integrations.serve outputs/hrpo-gsm8k --port 8000
```

The arguments are those of `transformers serve`. Completions think, in the mode of the checkpoint, also while they are
streamed. `--continuous-batching` is refused for a model that thinks: the paged engine has no place for its states.
"""

import sys

import transformers

from ..models.thinking import families
from ..registration import MODEL_CLASSES


class _WithThinking(type(transformers)):
    """The server looks for a checkpoint's class in transformers itself, not in the Auto classes."""

    def __getattr__(self, name):
        return getattr(families, name) if name.startswith("Thinking") else super().__getattr__(name)


def main() -> None:
    """Run `transformers serve` with the arguments of the command line."""
    try:
        from transformers.cli.transformers import main as transformers_cli
    except ImportError as error:
        raise ImportError(
            f"`transformers serve` needs more packages: pip install 'transformers[serving]'. {error}"
        ) from error
    transformers.__class__ = _WithThinking
    for cls in MODEL_CLASSES:
        setattr(transformers, cls.__name__, cls)
    sys.argv = [sys.argv[0], "serve", *sys.argv[1:]]
    transformers_cli()


if __name__ == "__main__":
    main()
