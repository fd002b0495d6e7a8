"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import matplotlib as mpl
import pytest

import deformdetr

# Functions with checked annotations are wrapped in such a way that doctest does not find them.
pytestmark = pytest.mark.unchecked

MODULES = [
    module.name
    for module in pkgutil.walk_packages(deformdetr.__path__, "deformdetr.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["deformdetr", *MODULES])
def test_examples_run(name, tmp_path, monkeypatch):
    mpl.use("agg")
    # Files that examples write land here.
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed
