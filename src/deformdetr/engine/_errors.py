"""Errors of the engine, and the check for its optional packages."""

from importlib.util import find_spec

_TRAIN_PACKAGES = ("accelerate", "matplotlib", "rich", "yaml")


class ConfigError(ValueError):
    """A config cannot be read, does not validate or does not fit its dataset."""


class RunError(ValueError):
    """A run directory cannot be used: it holds another run, or not what is asked of it."""


class TrainingError(RuntimeError):
    """Training cannot go on; what was saved before is intact."""


class PredictionError(ValueError):
    """Images to predict on are missing, or pictures would be written over them."""


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are there.

    Raises:
        ModuleNotFoundError: If one is not; the message says how to install it.
    """
    missing = [name for name in _TRAIN_PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'this needs {", ".join(missing)}: pip install "deformdetr[train]"', name=missing[0])
