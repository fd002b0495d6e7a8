"""Running commands as typed, in the process of the tests."""

from pathlib import Path

import pytest

from deformdetr.cli import main


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command, and return what it prints."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail, and return its message."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert printed.err.startswith("deformdetr: ")
    return printed.err
