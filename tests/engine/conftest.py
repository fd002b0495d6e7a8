from pathlib import Path

import pytest

from experiments import tiny_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run. Tests must not change it."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "finished")
