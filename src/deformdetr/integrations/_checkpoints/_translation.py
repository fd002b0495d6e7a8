"""A state dict during translation, with an account of the steps and of the values that are lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from deformdetr.integrations._checkpoints._names import Rules, rename

Reason: TypeAlias = Literal["no place", "asked for", "unused"]
"""Why values are lost: the format has no place for them, the caller chose other classes, or no model reads them."""


class Step(NamedTuple):
    """One step of a translation, and the numbers of entries before and after it."""

    what: str
    before: int
    after: int


@dataclass(frozen=True)
class Loss:
    """Values that are missing from the result."""

    what: str
    names: list[str]
    largest: float
    """Largest absolute value; 0 means that nothing is lost."""
    why: Reason = "no place"

    @classmethod
    def of(cls, what: str, tensors: Mapping[str, Tensor], why: Reason = "no place") -> "Loss":
        """Describe the loss of some entries."""
        # PyTorch's maximum, unlike Python's, propagates NaN.
        largest = torch.stack([_largest_value(tensor) for tensor in tensors.values()]).max()
        return cls(what, sorted(tensors), float(largest), why)


@dataclass
class Translation:
    """A state dict during translation, and an account of it."""

    tensors: dict[str, Tensor]
    share_heads: bool | None = None
    """Whether all decoder layers share one class head and one box head; None: not known yet."""
    steps: list[Step] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    unknown: dict[str, Tensor] = field(default_factory=dict)
    """Entries whose names no rule knows; they are not in `tensors`."""

    @property
    def everything(self) -> dict[str, Tensor]:
        """The result and the unknown entries, which keep their names."""
        return self.tensors | self.unknown

    def apply(self, what: str, step: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Apply a step, and record it if it changes the names of entries."""
        before = self.tensors
        self.tensors = step(before)
        if before.keys() != self.tensors.keys():
            self.steps.append(Step(what, len(before), len(self.tensors)))

    def rename(self, rules: Rules, *, reverse: bool) -> None:
        """Rename the entries, and move those that no rule knows to `unknown`."""
        before = self.tensors
        after, unknown = rename(before, rules, reverse=reverse)
        renamed = sum(old != new for old, new in zip(before, after, strict=True))
        if renamed:
            self.steps.append(Step(f"{renamed} renamed", len(before), len(after)))
        self.unknown = {name: after.pop(name) for name in unknown}
        self.tensors = after

    def drop(self, what: str, tensors: Mapping[str, Tensor], why: Reason = "no place") -> None:
        """Remove these entries, and record the loss."""
        if tensors:
            self.losses.append(Loss.of(what, tensors, why))
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in tensors}


@runtime_checkable
class Change(Protocol):
    """A difference in how an implementation stores weights, applied when writing and undone when reading."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Store the weights in the implementation's way.

        Args:
            result: The translation to change.
            ours: The whole state dict in this library's names, which tells the model's structure.
        """
        ...

    def read(self, result: Translation) -> None:
        """Undo `write`."""
        ...


def are_equal(first: Tensor, second: Tensor) -> bool:
    """Return whether shapes and values are equal; NaN, which diverged training leaves, equals NaN."""
    return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())


def _largest_value(tensor: Tensor) -> Tensor:
    """Return the largest absolute value: NaN if any value is, 0 without values."""
    values = tensor.detach().cpu()
    values = values.abs() if values.is_complex() else values.to(torch.float64).abs()
    return values.to(torch.float64).max() if values.numel() else torch.zeros((), dtype=torch.float64)
