"""Reading checkpoint files, and finding the weights in what training loops, wrappers and averages put around them."""

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from deformdetr._files import FileError, check_tensors, locate_checkpoint, read_tensor_file
from deformdetr.integrations._checkpoints._format import CheckpointFormat, Format
from deformdetr.integrations._checkpoints._formats import find_formats

# Parts of names that PyTorch's wrappers insert for any module that they wrap.
_TRANSPARENT = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod"}
# Words in the names of entries that hold an average of the weights.
_AVERAGES = {"average", "averaged", "avg", "ema", "swa"}
# An entry of AveragedModel beside the weights.
_AVERAGED_COUNT = "n_averaged"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model; the model is left as it was."""


def read_content(source: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the tensors and plain values of a checkpoint.

    Args:
        source: A file as for `locate_checkpoint`, or its content, which is returned as it is.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If it cannot be downloaded.
        CheckpointError: If the file cannot be read or does not hold a dict.
    """
    if not isinstance(source, str | Path):
        return source
    try:
        content = read_tensor_file(locate_checkpoint(source))
    except FileError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a state dict")
    return {str(name): value for name, value in content.items()}


class Weights(NamedTuple):
    """A state dict of a model, and where it was found."""

    tensors: dict[str, Tensor]
    """Entries without wrappers' prefixes, in the names of the format."""
    format: Format
    entries: tuple[str, ...]
    """Keys of the nested dicts that lead to it; empty if it was the whole content."""
    prefix: str
    """Prefix of all names."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights in the same content, and tensors beside them."""

    @property
    def place(self) -> str:
        """Description of the entries and the prefix; empty for a bare state dict."""
        parts = [f"entry {'.'.join(self.entries)}"] * bool(self.entries)
        parts += [f"names after {self.prefix}"] * bool(self.prefix)
        return ", ".join(parts)


def find_weights(content: Mapping[str, Any]) -> Weights:
    """Return a model's weights, below any entries and prefixes.

    Of several state dicts, weights are preferred to averages of them, then those nearest to the top, then the first.

    Args:
        content: A state dict, or nested dicts that hold one.

    Raises:
        ValueError: If there are none in a known format; the message describes the content.
    """
    found: list[Weights] = []
    rest: list[str] = []
    for entries, state in _state_dicts(content):
        formats = find_formats(state)
        for prefix, format_ in formats:
            tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            found.append(Weights(tensors, format_, entries, prefix))
        known = (*(prefix for prefix, _ in formats), _AVERAGED_COUNT)
        beside = [name for name in state if not name.startswith(known)]
        if formats and beside:
            rest.append(f"{_list_tensors(beside)} without such a prefix")
    if not found:
        raise ValueError(
            "not a checkpoint of Deformable DETR, DINO, DN-DETR or DETR in a known format; it holds "
            f"{_describe(content)}"
        )
    best, *others = sorted(found, key=_preference)
    try:
        check_tensors(best.tensors)
    except ValueError as error:
        raise ValueError(f"it holds {error}") from error
    return best._replace(left_aside=(*(each.place for each in others), *rest))


def recognize(state_dict: Mapping[str, Any]) -> CheckpointFormat:
    """Return the format of a state dict, which may have wrappers' prefixes.

    Raises:
        ValueError: If the format is not known; the message describes the content.

    Examples:
        >>> import torch
        >>> recognize({"module.transformer.level_embed": torch.zeros(4, 8)})
        'original'
    """
    return find_weights(state_dict).format.name


def _describe(content: Mapping[str, Any], limit: int = 8) -> str:
    """Describe content in one line: tensors by their first names, other entries by their types."""
    tensors = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
    parts = [_list_tensors(tensors)] * bool(tensors)
    for name, value in content.items():
        if isinstance(value, Mapping):
            inner = [str(key) for key, each in value.items() if isinstance(each, Tensor)]
            parts.append(f"{name}: {_list_tensors(inner) if inner else f'a dict of {len(value)} entries'}")
        elif not isinstance(value, Tensor):
            parts.append(f"{name}: {type(value).__name__}")
    more = [f"{len(parts) - limit} more entries"] * (len(parts) > limit)
    return "; ".join([*parts[:limit], *more]) or "nothing"


def _list_tensors(names: list[str]) -> str:
    listed = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({listed})"


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping that holds tensors, with the keys that lead to it, outer mappings first."""
    left: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    opened = set()
    while left:
        entries, values = left.popleft()
        tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            yield entries, _without_transparent(tensors)
        # Each mapping is opened once, because files may nest a mapping in itself.
        if id(values) not in opened:
            opened.add(id(values))
            left.extend(((*entries, str(name)), value) for name, value in values.items() if isinstance(value, Mapping))


def _without_transparent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {".".join(part for part in name.split(".") if part not in _TRANSPARENT): name for name in state}
    if len(plain) < len(state):
        names = sorted(set(state) - set(plain.values()))
        raise ValueError(f"{names[0]} has the name of another entry after removing wrappers")
    return {name: state[wrapped] for name, wrapped in plain.items()}


def _preference(weights: Weights) -> tuple[bool, int, int]:
    """Sort weights before averages, then by depth."""
    words = {word for part in (*weights.entries, *weights.prefix.split(".")) for word in part.lower().split("_")}
    return bool(words & _AVERAGES), len(weights.entries), weights.prefix.count(".")
