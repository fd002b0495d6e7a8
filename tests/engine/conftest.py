from pathlib import Path

import pytest

from deformdetr.engine import _train
from experiments import tiny_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run. Tests must not change it."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves, except for runs that tests share, such as `finished_run`: drawing takes longer than training."""
    monkeypatch.setattr(_train, "plot_curves", lambda records, path: path.touch())
