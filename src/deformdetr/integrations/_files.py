"""Files of checkpoints: read without running what they hold, and written whole or not at all."""

import argparse
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
# What PyTorch's reader raises on files that are cut short, damaged, or something else altogether.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    AttributeError,
    TypeError,
    struct.error,
    # Seeking to where a file that is cut short no longer is.
    OSError,
)


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


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Check that a checkpoint can be written there.

    Raises:
        ValueError: If the suffix is not that of a checkpoint.
        FileExistsError: If there is a file already, which must not be overwritten.
        FileNotFoundError: If there is no such folder.
    """
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(_SUFFIXES)}")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; overwrite=True, or --force, replaces it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")


def write_tensors(state: Mapping[str, Tensor], path: Path, *, container: str | None = None) -> None:
    """Write a state dict beside its place, and rename it into place when it is complete.

    Args:
        state: What to write; its tensors may be views and lie on any device.
        path: `.safetensors`, or PyTorch's format.
        container: The entry of a file in PyTorch's format that holds the state dict; None: it is the whole content.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        if path.suffix == ".safetensors":
            # Imported here, because only files of this format need the package.
            from safetensors.torch import save_file

            # A copy of each, because tensors of this format cannot share memory.
            copies = {name: _plain(tensor).clone() for name, tensor in state.items()}
            save_file(copies, unfinished, metadata={"format": "pt"})
        else:
            plain = {name: _plain(tensor) for name, tensor in state.items()}
            torch.save(plain if container is None else {container: plain}, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _read(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the file in it, such as {path / 'model.safetensors'}")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    with path.open("rb") as file:
        try:
            # The original keeps its command line in the file; a namespace of plain values is harmless.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}


def _reason(error: Exception) -> str:
    """Say in one line why PyTorch refused a file; its own message advises to run the code in it."""
    unsafe = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if unsafe:
        return (
            f"it holds a {unsafe[1]}, and only tensors and plain values are unpickled, because anything else may run "
            "code; save the state dict alone"
        )
    first = next(iter(str(error).splitlines()), "")
    return f"not a file that torch.save has written, or cut short or damaged ({type(error).__name__}: {first})"
