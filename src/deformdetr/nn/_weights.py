"""Weights of backbones from files of their original implementations."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from torch import Tensor, nn

from deformdetr._files import read_tensor_file


def read_weights(path: Path, *, entry: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file.

    Args:
        path: A file in PyTorch's or the safetensors format.
        entry: Key that the state dict may be under, beside other entries.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read, or holds anything but a dict of tensors.
    """
    content = read_tensor_file(path)
    if isinstance(content, dict) and entry in content:
        content = content[entry]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in content.items()
    ):
        raise ValueError(f"weights ({path}) hold no state dict of tensors: the file has a {type(content).__name__}")
    return content


def load_weights(module: nn.Module, state: Mapping[str, Tensor], refusal: str) -> None:
    """Load a state dict that has all names of the module and no others.

    Raises:
        ValueError: If names or shapes differ; the message starts with `refusal`.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # PyTorch writes a line for each kind of difference, and one for each size. The first three tell enough.
        reasons = "; ".join(shorten(line, 200) for line in str(error).splitlines()[1:4])
        raise ValueError(f"{refusal}: {reasons}") from error
