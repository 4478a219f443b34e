"""How a recipe ends: its exit code, and one line for what is no fault of the code."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .checkpoints import OutputFolderError
from .lock import FolderInUseError


def run_recipe(main: Callable[[], Any]) -> NoReturn:
    """
    Call a recipe's `main` and exit: 0 or what it returns, 130 after Ctrl-C, 143 after SIGTERM, 1 after an error.
    Errors about files and about the output folder become one line; others keep their traceback.
    """
    try:
        result = main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OutputFolderError, FolderInUseError, OSError) as error:
        sys.exit(f"Error: {error}")
    sys.exit(result if isinstance(result, int) else 0)
