"""What pytest loads where this library is installed: nothing, unless it runs `deformdetr.testing`."""

from typing import Any


def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Load the options of `deformdetr.testing` if its tests are to run.

    pytest reads options of a package's `conftest.py` too late for `--pyargs`.
    """
    if any(argument.partition("::")[0].partition("/")[0] == "deformdetr.testing" for argument in args):
        early_config.pluginmanager.import_plugin("deformdetr.testing._plugin")
