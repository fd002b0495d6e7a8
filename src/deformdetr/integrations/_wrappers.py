"""Weights inside of what training loops, parallel training, compilers and averages put around them."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from deformdetr._files import check_tensors
from deformdetr.integrations._formats import find_lineages
from deformdetr.integrations._lineage import CheckpointFormat, Lineage

# Parts of names that PyTorch's wrappers add, to whichever module they wrap.
_TRANSPARENT = {"_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod"}
# What entries that hold an average of the weights are called, among other words.
_AVERAGES = {"average", "averaged", "avg", "ema", "swa"}
# What AveragedModel has beside the weights.
_COUNT = "n_averaged"


class Weights(NamedTuple):
    """A state dict of a model, and where it was."""

    tensors: dict[str, Tensor]
    """By their names in the lineage."""
    lineage: Lineage
    entries: tuple[str, ...]
    """The way to it through nested entries; empty: it was the whole content."""
    prefix: str
    """What stood before every name."""
    left_aside: tuple[str, ...] = ()
    """Places of other weights in the same content, and tensors beside them."""

    @property
    def place(self) -> str:
        """Say where it was; empty for a state dict by itself."""
        parts = [f"entry {'.'.join(self.entries)}"] * bool(self.entries)
        parts += [f"names after {self.prefix}"] * bool(self.prefix)
        return ", ".join(parts)


def find_weights(content: Mapping[str, Any]) -> Weights:
    """Return a model's weights, however deep in entries and prefixes they are.

    Where there are several, an average of the weights comes after the weights themselves, then what lies nearest to the
    top is taken, then the first.

    Args:
        content: A state dict, or what holds one.

    Raises:
        ValueError: If there are none in a known format; the message says what there is.
    """
    found: list[Weights] = []
    rest: list[str] = []
    for entries, state in _state_dicts(content):
        lineages = find_lineages(state)
        for prefix, lineage in lineages:
            tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            found.append(Weights(tensors, lineage, entries, prefix))
        known = (*(prefix for prefix, _ in lineages), _COUNT)
        beside = [name for name in state if not name.startswith(known)]
        if lineages and beside:
            rest.append(f"{_count(beside)} without such a prefix")
    if not found:
        raise ValueError(
            "not a checkpoint of Deformable DETR, DINO, DN-DETR or DETR in a known format; it holds "
            f"{describe(content)}"
        )
    best, *others = sorted(found, key=_distance)
    try:
        check_tensors(best.tensors)
    except ValueError as error:
        raise ValueError(f"it holds {error}") from error
    return best._replace(left_aside=(*(each.place for each in others), *rest))


def recognize(state_dict: Mapping[str, Any]) -> CheckpointFormat:
    """Tell whose names a state dict has, after the prefixes that wrappers add.

    Raises:
        ValueError: If it has none of the known ones; the message says what it has.
    """
    return find_weights(state_dict).lineage.format


def describe(content: Mapping[str, Any], limit: int = 8) -> str:
    """Say in one line what there is: tensors with the first names, and other entries with their kinds."""
    tensors = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
    parts = [_count(tensors)] * bool(tensors)
    for name, value in content.items():
        if isinstance(value, Mapping):
            inner = [str(key) for key, each in value.items() if isinstance(each, Tensor)]
            parts.append(f"{name}: {_count(inner) if inner else f'a dict of {len(value)} entries'}")
        elif not isinstance(value, Tensor):
            parts.append(f"{name}: {type(value).__name__}")
    more = [f"{len(parts) - limit} more entries"] * (len(parts) > limit)
    return "; ".join([*parts[:limit], *more]) or "nothing"


def _count(names: list[str]) -> str:
    listed = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({listed})"


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Yield every mapping that holds tensors with the entries that lead to it, outer ones first."""
    left: deque[tuple[tuple[str, ...], Mapping[Any, Any]]] = deque([((), content)])
    opened = set()
    while left:
        entries, values = left.popleft()
        tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            yield entries, _without_transparent(tensors)
        # Opened once, because a file can nest its values in any depth and in themselves.
        if id(values) not in opened:
            opened.add(id(values))
            left.extend(((*entries, str(name)), value) for name, value in values.items() if isinstance(value, Mapping))


def _without_transparent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = {".".join(part for part in name.split(".") if part not in _TRANSPARENT): name for name in state}
    if len(plain) < len(state):
        names = sorted(set(state) - set(plain.values()))
        raise ValueError(f"{names[0]} has the name of another entry, wrappers aside")
    return {name: state[wrapped] for name, wrapped in plain.items()}


def _distance(weights: Weights) -> tuple[bool, int, int]:
    words = {word for part in (*weights.entries, *weights.prefix.split(".")) for word in part.lower().split("_")}
    return bool(words & _AVERAGES), len(weights.entries), weights.prefix.count(".")
