"""The optional packages that training, evaluation and prediction need."""

from importlib.util import find_spec

_TRAIN = ("accelerate", "matplotlib", "rich", "yaml")


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are there.

    Raises:
        ModuleNotFoundError: If one is not; the message says how to install it.
    """
    missing = [name for name in _TRAIN if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'this needs {", ".join(missing)}: pip install "deformdetr[train]"', name=missing[0])
