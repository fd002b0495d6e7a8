"""Importing matplotlib, whatever backend the environment names."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any


def matplotlib_module(name: str) -> Any:
    """Return a module of matplotlib, such as `font_manager`.

    matplotlib refuses to be imported if the variable `MPLBACKEND` names no backend. Figures that are created without
    pyplot, as here, need none.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    backend = os.environ.get("MPLBACKEND")
    if "matplotlib" not in sys.modules and backend:
        del os.environ["MPLBACKEND"]
        try:
            package = import_module("matplotlib")
        finally:
            os.environ["MPLBACKEND"] = backend
        # What matplotlib does with the variable, for code that uses pyplot later.
        with suppress(ValueError):
            package.rcParams["backend"] = backend
    return import_module(f"matplotlib.{name}")


def new_figure(**settings: Any) -> Any:
    """Return an empty figure. Settings are those of `matplotlib.figure.Figure`."""
    return matplotlib_module("figure").Figure(**settings)
