"""Reading and writing tensor files, without running code from them."""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from deformdetr._files._errors import FileError
from deformdetr._files._paths import check_readable
from deformdetr._files._replacing import replacing

# Exceptions of the readers of PyTorch and safetensors for truncated, damaged or foreign files.
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    AttributeError,
    TypeError,
    ArithmeticError,
    struct.error,
    # A damaged length.
    MemoryError,
    # Seeking beyond the end of a truncated file, and missing permissions.
    OSError,
)


# A mapping in place of the tree of settings of the package yacs, which Swin Transformer and its relatives store.
_SETTINGS_OF_YACS = (OrderedDict, "yacs.config.CfgNode")


def read_tensor_file(path: Path) -> Any:
    """Return the content of a tensor file, on the CPU. Only tensors and plain values are unpickled.

    Args:
        path: A `.safetensors` file, or a file in PyTorch's format with any other suffix.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If it cannot be read, or holds tensors that are not dense and real.
    """
    with reading_tensors(path):
        if _is_safetensors(path):
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            # Training scripts store their settings in the file. Plain values are harmless.
            with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace, _SETTINGS_OF_YACS]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    try:
        check_tensors(content)
    except ValueError as error:
        raise FileError(f"{path} holds {error}") from error
    return content


def check_tensors(content: Any) -> None:
    """Check that all tensors can be copied into a model without losing part of their values.

    Args:
        content: Tensors and other values, in dicts, lists and tuples of any depth.

    Raises:
        ValueError: If a tensor is sparse, quantized, complex or on the meta device. The message names it.
    """
    # Iterative and with a set of visited containers, because files can nest values to any depth and in themselves.
    left, seen = [("", content)], set()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            kind = _unsupported_kind(value)
            if kind is not None:
                raise ValueError(f"a tensor that is not plain: {name.lstrip('.')!r} is {kind}")
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{name}.{key!s:.80}", each) for key, each in entries]


def check_stored_sums(path: Path) -> None:
    """Check the checksums that a file in PyTorch's format has. PyTorch does not compare them when it reads.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If the content does not match them. Files without checksums pass.
    """
    check_readable(path)
    try:
        # It raises, too, for archives that claim to span several disks.
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, *_UNREADABLE) as error:
        raise FileError(f"{path} cannot be read: {_reason(error, path)}") from error
    if damaged is not None:
        raise FileError(f"{path} is damaged: {damaged} in it has another checksum than when it was written")


@contextmanager
def reading_tensors(path: Path) -> Iterator[None]:
    """Turn exceptions of the readers of PyTorch and safetensors into `FileError`.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileError: If the block fails because of the content of the file.
    """
    check_readable(path)
    unreadable: tuple[type[Exception], ...] = _UNREADABLE
    if _is_safetensors(path):
        # Imported here, because only this format needs it.
        from safetensors import SafetensorError

        unreadable = (*unreadable, SafetensorError)
    try:
        with warnings.catch_warnings():
            # Readers warn about foreign files. The error says enough.
            warnings.simplefilter("ignore")
            yield
    except unreadable as error:
        raise FileError(f"{path} cannot be read: {_reason(error, path)}") from error


def write_tensors(state: Mapping[str, Tensor], path: Path, *, container: str | None = None) -> None:
    """Write a state dict, atomically as `replacing` does.

    Args:
        state: State dict. Its tensors may be views, on any device.
        path: A `.safetensors` file, or a file in PyTorch's format with any other suffix.
        container: Key of the state dict in a file in PyTorch's format. With `None`, it is the whole content.

    Raises:
        OSError: If the file cannot be written.
    """
    plain = _on_cpu(state)
    if not _is_safetensors(path):
        write_tensor_file(plain if container is None else {container: plain}, path)
        return
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as unfinished:
        # Tensors of this format cannot share memory.
        copies = {name: tensor.clone() for name, tensor in plain.items()}
        try:
            save_file(copies, unfinished, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error


def write_tensor_file(content: Any, path: Path) -> None:
    """Write tensors and plain values in PyTorch's format, atomically as `replacing` does.

    Raises:
        OSError: If the file cannot be written.
    """
    # Given a path instead of a file, PyTorch does not report why writing failed.
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        torch.save(content, file)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU. Names that share a tensor share its copy."""
    copies: dict[tuple[object, ...], Tensor] = {}
    plain = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in copies:
            copies[place] = tensor.detach().cpu().contiguous()
        plain[name] = copies[place]
    return plain


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _unsupported_kind(tensor: Tensor) -> str | None:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return f"{tensor.layout} on {tensor.device}"
    if tensor.is_quantized:
        return "quantized"
    return "complex" if tensor.is_complex() else None


def _reason(error: BaseException, path: Path) -> str:
    """Return in one line why reading failed. PyTorch's own message suggests running the code in the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    unsafe = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)", str(error))
    if unsafe:
        return (
            f"it holds a {unsafe[1]}, and only tensors and plain values are unpickled, because anything else may run "
            "code; save the state dict alone"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return error.strerror or str(error)
    written = "not a safetensors file" if _is_safetensors(path) else "not a file that torch.save has written"
    said = re.search(r"WeightsUnpickler error:\s*(.*)", str(error)) or re.match(r"(.*?)(?:\.\s|\n|$)", str(error))
    details = shorten(said[1], 200) if said else ""
    return f"{written}, or cut short or damaged ({type(error).__name__}: {details})"
