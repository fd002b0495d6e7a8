"""How one implementation names and stores the weights of one architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from deformdetr.integrations._checkpoints._changes import DetectorPrefix
from deformdetr.integrations._checkpoints._names import Rules
from deformdetr.integrations._checkpoints._translation import Change, Translation

CheckpointFormat: TypeAlias = Literal[
    "deformdetr", "original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex"
]
Architecture: TypeAlias = Literal["deformable_detr", "dino", "dn_deformable_detr", "detr"]
CONTAINERS: Mapping[CheckpointFormat, str] = {
    "original": "model",
    "mmdetection_2": "state_dict",
    "mmdetection_3": "state_dict",
    "detrex": "model",
}
"""Entry that holds the state dict in PyTorch files; files of other formats hold nothing else."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """The differences between one implementation's state dicts of one architecture and this library's."""

    name: CheckpointFormat
    architecture: Architecture
    marks: tuple[str, ...]
    """Names of entries by which the format is recognized; all must be there."""
    rules: Rules | None = None
    """Names of entries here and there, special ones before general ones; None: the names are the same."""
    synonyms: Rules = ()
    """More names that are read, but not written."""
    own_resnet: Rules = ()
    """Names of the implementation's own ResNet, if it has one besides torchvision's."""
    changes: tuple[Change, ...] = ()
    """Other differences, applied in this order before renaming when writing."""
    late_changes: tuple[Change, ...] = ()
    """Differences that are applied after renaming when writing."""
    masks: DetectorPrefix | None = None
    """How models with masks are stored, if the implementation has them."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Entries (in this library's names) that all its models have, and the config field that adds them."""
    remarks: tuple[str, ...] = ()
    """What users should know when they move weights."""

    def prefixes(self) -> tuple[str, ...]:
        """Return the prefixes that the marks may have."""
        return ("",) if self.masks is None else ("", self.masks.prefix)

    def recognizes(self, names: Mapping[str, object] | set[str]) -> bool:
        """Return whether a state dict has this format."""
        return any(all(prefix + mark in names for mark in self.marks) for prefix in self.prefixes())

    def read(self, state: Mapping[str, Tensor], *, share_heads: bool | None = None) -> Translation:
        """Translate a state dict of this format to this library's names.

        Args:
            state: Without the prefixes of wrappers.
            share_heads: Whether all decoder layers share their heads, for checkpoints that do not tell.

        Raises:
            ValueError: If it holds a head under two names with different values, or nothing tells whether layers share
                their heads.
        """
        result = Translation(dict(state), share_heads)
        for change in reversed(self._all_late_changes()):
            change.read(result)
        if self.rules is not None:
            result.rename((*self.own_resnet, *self.rules, *self.synonyms), reverse=True)
        for change in reversed(self.changes):
            change.read(result)
        return result

    def write(self, state: Mapping[str, Tensor], *, own_resnet: bool = False) -> Translation:
        """Translate a state dict in this library's names to this format.

        Args:
            state: State dict of a model of this architecture.
            own_resnet: Whether to use the names of the implementation's own ResNet.

        Raises:
            ValueError: If the state dict lacks entries that all models of this format have.
        """
        lacking = [setting for name, setting in self.needs.items() if name not in state]
        if lacking:
            raise ValueError(f"{self.name} has no such model: all of this kind have {', '.join(lacking)}")
        result = Translation(dict(state))
        for change in self.changes:
            change.write(result, state)
        if self.rules is not None:
            result.rename((*self.own_resnet, *self.rules) if own_resnet else self.rules, reverse=False)
        for change in self._all_late_changes():
            change.write(result, state)
        return result

    def _all_late_changes(self) -> tuple[Change, ...]:
        return self.late_changes if self.masks is None else (*self.late_changes, self.masks)
