"""How a recipe ends: its exit code, and one line for what is no fault of the code."""

import dis
import errno
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .termination import Terminated, handle_sigterm


_REMEDIES = {
    errno.EEXIST: "A file stands where a folder is needed. Move it away, or give another path.",
    errno.ENOTDIR: "A file stands where a folder is needed. Move it away, or give another path.",
    errno.ENOSPC: "Make room on the disk, and run the same command again: what was saved is kept.",
}


def run_recipe(main: Callable[[], Any], interrupted: str | None = None) -> NoReturn:
    """
    Call a recipe's `main` and exit: 0 or what it returns, 130 after Ctrl-C, 143 after SIGTERM, 1 after an error.

    Errors about files become one line, and so does what this package refuses; others keep their traceback.

    Args:
        main (`Callable`):
            Called without arguments.
        interrupted (`str`, *optional*):
            What to say after Ctrl-C or SIGTERM.
    """
    try:
        with handle_sigterm():
            result = main()
    except (KeyboardInterrupt, Terminated) as stop:
        if interrupted is not None:
            print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(stop.code if isinstance(stop, Terminated) else 130)
    except SystemExit:  # wrong arguments, which are a `ValueError` as well
        raise
    except OSError as error:
        sys.exit(f"Error: {_with_remedy(error)}")
    except (ValueError, ImportError, RuntimeError) as error:
        if not _is_refusal(error):
            raise
        sys.exit(f"Error: {error}")
    sys.exit(result if isinstance(result, int) else 0)


def _with_remedy(error: OSError) -> str:
    """The message of an error about a file; one of the operating system gets what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    path = "" if error.filename is None else f"{error.filename}: "
    return f"{path}{error.strerror}. {_REMEDIES.get(error.errno, 'Check the path, its permissions and the disk.')}"


def _is_refusal(error: Exception) -> bool:
    """Whether a `raise` of this package made the error: then its message says what to do, and it is no bug's."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    package, script = __name__.partition(".")[0], "__main__"
    ours = place.tb_frame.f_globals.get("__name__", "").partition(".")[0] in (package, script)
    return ours and place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]
