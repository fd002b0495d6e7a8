"""The command line: `deformdetr --help`."""

from deformdetr.cli._main import main

__all__ = ["main"]
