"""How a recipe ends: its exit code, and one line for what is no fault of the code."""

import dis
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .checkpoints import OutputFolderError
from .lock import FolderInUseError
from .termination import Terminated


def run_recipe(main: Callable[[], Any], interrupted: str | None = None) -> NoReturn:
    """
    Call a recipe's `main` and exit: 0 or what it returns, 130 after Ctrl-C, 143 after SIGTERM, 1 after an error.

    Errors about files and about the output folder become one line, and so does what this package refuses; others keep
    their traceback.

    Args:
        main (`Callable`):
            Called without arguments.
        interrupted (`str`, *optional*):
            What to say after Ctrl-C or SIGTERM.
    """
    try:
        result = main()
    except (KeyboardInterrupt, Terminated) as stop:
        if interrupted is not None:
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(stop.code if isinstance(stop, Terminated) else 130)
    except SystemExit:  # wrong arguments, which are a `ValueError` as well
        raise
    except (OutputFolderError, FolderInUseError, OSError) as error:
        sys.exit(f"Error: {error}")
    except (ValueError, ImportError) as error:
        if not _is_refusal(error):
            raise
        sys.exit(f"Error: {error}")
    sys.exit(result if isinstance(result, int) else 0)


def _is_refusal(error: Exception) -> bool:
    """Whether a `raise` of this package made the error: then its message says what to do, and it is no bug's."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    package, script = __name__.partition(".")[0], "__main__"
    ours = place.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (package, script)
    return ours and place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]
