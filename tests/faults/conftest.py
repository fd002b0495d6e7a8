"""One training without faults, which those with faults are compared with, and the figures of all tests."""

from pathlib import Path
from typing import NamedTuple

import pytest

from fragile_runs import train_whole

_FIGURES = pytest.StashKey[list[str]]()


class Reference(NamedTuple):
    """A run that nothing has interrupted, and the seconds that it took."""

    run: Path
    seconds: float


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    run = tmp_path_factory.mktemp("whole") / "run"
    return Reference(run, train_whole(run))


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> list[str]:
    """Return a list of lines that are shown after all tests."""
    return pytestconfig.stash.setdefault(_FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)
