"""Runs a recipe as `python recipe.py ...` would, with the tracer: `chaos_traced.py recipe.py ...`."""

import os
import runpy
import sys

from chaos_tracer import install_from_environment


if __name__ == "__main__":
    install_from_environment()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
