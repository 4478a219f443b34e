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

from ..registration import MODEL_CLASSES


def main() -> None:
    """Run `transformers serve` with the arguments of the command line."""
    try:
        from transformers.cli.transformers import main as transformers_cli
    except ImportError as error:
        raise ImportError(
            f"`transformers serve` needs more packages: pip install 'transformers[serving]'. {error}"
        ) from error
    for cls in MODEL_CLASSES:  # the server takes a checkpoint's class from there, not from the Auto classes
        setattr(transformers, cls.__name__, cls)
    sys.argv = [sys.argv[0], "serve", *sys.argv[1:]]
    transformers_cli()


if __name__ == "__main__":
    main()
