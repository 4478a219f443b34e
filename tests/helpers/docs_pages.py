"""The blocks and the text of README and docs."""

import importlib.util
import sys

from repository import ROOT


_SPEC = importlib.util.spec_from_file_location("run_commands", ROOT / "docs" / "run_commands.py")
run_commands = importlib.util.module_from_spec(_SPEC)
sys.modules["run_commands"] = run_commands
_SPEC.loader.exec_module(run_commands)

BLOCKS = run_commands.all_blocks()
PAGES = sorted({path for pattern in run_commands.PAGES for path in ROOT.glob(pattern)})
