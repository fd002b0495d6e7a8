"""A state dict on its way from one implementation's names to another's, and the account of what happened to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from deformdetr.integrations._names import Rules, rename
from deformdetr.integrations._values import largest_value


class Step(NamedTuple):
    """One change on the way between two formats, and how many entries there were before and after it."""

    what: str
    before: int
    after: int


@dataclass(frozen=True)
class Loss:
    """Values that are not in the result."""

    what: str
    names: list[str]
    largest: float
    """Largest absolute value among them; 0 means that nothing is lost."""
    why: Literal["no place", "asked for", "unused"] = "no place"
    """The format has no place for them; the caller chose other classes; or no model ever reads them."""

    @classmethod
    def of(
        cls, what: str, tensors: Mapping[str, Tensor], why: Literal["no place", "asked for", "unused"] = "no place"
    ) -> "Loss":
        """Measure the loss of some entries."""
        # PyTorch's maximum, unlike Python's, is NaN where any of them is.
        largest = torch.stack([largest_value(tensor) for tensor in tensors.values()]).max()
        return cls(what, sorted(tensors), float(largest), why)


@dataclass
class Translation:
    """A state dict on its way, and an account of the way."""

    tensors: dict[str, Tensor]
    share_heads: bool | None = None
    """Whether all decoder layers share one class head and one box head; None: nothing has told so far."""
    steps: list[Step] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    unknown: dict[str, Tensor] = field(default_factory=dict)
    """Entries whose names no rule knows, apart from `tensors`."""

    @property
    def everything(self) -> dict[str, Tensor]:
        """The result with the unknown entries, under the names that they came with."""
        return self.tensors | self.unknown

    def apply(self, what: str, step: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Take a step, and write it down if it changes which entries there are."""
        before = self.tensors
        self.tensors = step(before)
        if before.keys() != self.tensors.keys():
            self.steps.append(Step(what, len(before), len(self.tensors)))

    def rename(self, rules: Rules, *, reverse: bool) -> None:
        """Rename the entries, and put those that no rule knows aside."""
        before = self.tensors
        after, unknown = rename(before, rules, reverse=reverse)
        renamed = sum(old != new for old, new in zip(before, after, strict=True))
        if renamed:
            self.steps.append(Step(f"{renamed} renamed", len(before), len(after)))
        self.unknown = {name: after.pop(name) for name in unknown}
        self.tensors = after

    def lose(
        self,
        what: str,
        tensors: Mapping[str, Tensor],
        why: Literal["no place", "asked for", "unused"] = "no place",
    ) -> None:
        """Leave out what is still there of these entries, and write the loss down."""
        if tensors:
            self.losses.append(Loss.of(what, tensors, why))
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in tensors}


@runtime_checkable
class Change(Protocol):
    """A difference in how an implementation stores weights, which can be made and undone."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Store the weights its way.

        Args:
            done: What is written.
            ours: The whole state dict in this library's names, which tells the model's structure.
        """
        ...

    def read(self, done: Translation) -> None:
        """Undo `write`."""
        ...
