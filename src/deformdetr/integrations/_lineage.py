"""An implementation's state dicts of one architecture, and the way from and to ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from deformdetr.integrations._changes import DetectorPrefix
from deformdetr.integrations._names import Rules
from deformdetr.integrations._translation import Change, Translation

CheckpointFormat: TypeAlias = Literal[
    "deformdetr", "original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex"
]
Architecture: TypeAlias = Literal["deformable_detr", "dino", "dn_deformable_detr", "detr"]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How one implementation's state dicts of one architecture differ from ours."""

    format: CheckpointFormat
    architecture: Architecture
    marks: tuple[str, ...]
    """Names that together tell such a state dict from all others."""
    rules: Rules | None = None
    """Names here and there, special ones before general ones; None: there they are the same, whatever they are."""
    synonyms: Rules = ()
    """Further names that are understood, but not written."""
    own_resnet: Rules = ()
    """Names of its own ResNet, where it has one besides torchvision's."""
    changes: tuple[Change, ...] = ()
    """What else differs, made in this order when writing, before names are changed."""
    late_changes: tuple[Change, ...] = ()
    """The same for what is changed after the names."""
    masks: DetectorPrefix | None = None
    """How it stores a model with masks, where that is done."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Names here that all its models have, and the field of a config that gives them."""
    container: str | None = None
    """The entry of a PyTorch file that holds the state dict; None: it is the file's whole content."""
    remarks: tuple[str, ...] = ()
    """What else to know when moving weights."""

    def prefixes(self) -> tuple[str, ...]:
        """Return what the marks may begin with."""
        return ("",) if self.masks is None else ("", self.masks.prefix)

    def recognizes(self, names: Mapping[str, object] | set[str]) -> bool:
        """Tell whether a state dict is of this lineage."""
        return any(all(prefix + mark in names for mark in self.marks) for prefix in self.prefixes())

    def read(self, state: Mapping[str, Tensor], *, share_heads: bool | None = None) -> Translation:
        """Translate a state dict of this lineage to our names.

        Args:
            state: Without the prefixes of wrappers.
            share_heads: Whether all decoder layers share their heads, for checkpoints that do not tell.

        Raises:
            ValueError: If it holds a head under two names with different values, or nothing tells whether layers share
                their heads.
        """
        done = Translation(dict(state), share_heads)
        for change in reversed(self._late()):
            change.read(done)
        if self.rules is not None:
            done.rename((*self.own_resnet, *self.rules, *self.synonyms), reverse=True)
        for change in reversed(self.changes):
            change.read(done)
        return done

    def write(self, state: Mapping[str, Tensor], *, own_resnet: bool = False) -> Translation:
        """Translate a state dict in our names to this lineage's.

        Args:
            state: Of a model of this architecture.
            own_resnet: Whether the backbone has the names of this implementation's own ResNet.

        Raises:
            ValueError: If this implementation's models have parts that this one lacks.
        """
        lacking = [setting for name, setting in self.needs.items() if name not in state]
        if lacking:
            raise ValueError(f"{self.format} has no such model: all of this kind have {', '.join(lacking)}")
        done = Translation(dict(state))
        for change in self.changes:
            change.write(done, state)
        if self.rules is not None:
            done.rename((*self.own_resnet, *self.rules) if own_resnet else self.rules, reverse=False)
        for change in self._late():
            change.write(done, state)
        return done

    def _late(self) -> tuple[Change, ...]:
        return self.late_changes if self.masks is None else (*self.late_changes, self.masks)
