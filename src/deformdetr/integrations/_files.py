"""Content of checkpoints: tensors, and plain values beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deformdetr._files import FileError, read_tensor_file


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the model is left as it was."""


def read_content(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Read a checkpoint: tensors, and plain values beside them.

    Args:
        source: A file, or what one holds.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it cannot be read, or holds no names.
    """
    return _read(Path(source)) if isinstance(source, str | Path) else source


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_tensor_file(path)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}
