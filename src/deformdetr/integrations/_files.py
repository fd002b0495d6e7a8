"""Files of checkpoints, without the prefixes of wrappers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deformdetr._files import FileError, read_tensor_file


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the model is left as it was."""


def read_tensors(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, without the prefixes that wrappers add to their names.

    Args:
        source: A state dict, or a file that holds one, by itself or as its entry `model` or `state_dict`.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it cannot be read, or holds something else.
    """
    content = _read(Path(source)) if isinstance(source, str | Path) else source
    inner = (content.get(key) for key in ("model", "state_dict"))
    state = next((value for value in inner if isinstance(value, Mapping)), content)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    # Of a `Detector`, which transformers' names would otherwise be taken for.
    if "model.neck.levels.0.conv.weight" in tensors:
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    return tensors


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_tensor_file(path)
    except FileError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}
