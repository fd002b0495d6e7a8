"""Errors of the engine, and the check for its optional packages."""

from importlib.util import find_spec

_TRAIN_PACKAGES = ("accelerate", "matplotlib", "rich", "yaml")


class ConfigError(ValueError):
    """A config cannot be read, is not valid or does not fit its dataset."""


class RunError(ValueError):
    """A run directory cannot be used: it holds another run, or files are missing or invalid."""


class TrainingError(RuntimeError):
    """Training cannot continue. Checkpoints saved before are intact."""


class TrainingInterrupted(KeyboardInterrupt):
    """A signal has ended a training, whose state is saved.

    Attributes:
        signal: Number of the signal. The conventional exit status is 128 more.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class PredictionError(ValueError):
    """Images to predict on are missing, or would be overwritten."""


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are installed.

    Raises:
        ModuleNotFoundError: If one is missing. The message tells how to install it.
    """
    missing = [name for name in _TRAIN_PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'this needs {", ".join(missing)}: pip install "deformdetr[train]"', name=missing[0])
