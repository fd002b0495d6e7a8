"""An implementation's state dicts of one architecture, and the way from and to ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor

from deformdetr.integrations._names import Rules, rename
from deformdetr.integrations._steps import (
    add_aliases,
    add_detector_prefix,
    add_neck_biases,
    encoder_heads_apart,
    gather_heads,
    has_masks,
    is_two_stage,
    neck_biases,
    refines_boxes,
    split_projections,
    spread_heads,
    stack_projections,
    with_batch_counts,
    without_aliases,
    without_batch_counts,
    without_detector_prefix,
)

CheckpointFormat: TypeAlias = Literal[
    "deformdetr", "original", "hugging_face_4", "hugging_face_5", "mmdetection_2", "mmdetection_3", "detrex"
]


@dataclass(frozen=True)
class Step:
    """One change on the way between two formats, and how many entries there were before and after it."""

    what: str
    before: int
    after: int


@dataclass(frozen=True)
class Loss:
    """Values that a format has no place for."""

    what: str
    names: list[str]
    largest: float
    """Largest absolute value among them; 0 means that nothing is lost."""

    @classmethod
    def of(cls, what: str, tensors: Mapping[str, Tensor]) -> "Loss":
        """Measure it."""
        sizes = [tensor.detach().abs().max().item() for tensor in tensors.values() if tensor.numel()]
        return cls(what, sorted(tensors), float(max(sizes, default=0.0)))


@dataclass
class Translation:
    """A state dict on its way, and an account of the way."""

    tensors: dict[str, Tensor]
    steps: list[Step] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Names that no rule knows, still in `tensors`."""

    def apply(self, what: str, step: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
        """Take a step, and write it down if it changes which entries there are."""
        before = self.tensors
        self.tensors = step(before)
        if before.keys() != self.tensors.keys():
            self.steps.append(Step(what, len(before), len(self.tensors)))

    def rename(self, rules: Rules, *, reverse: bool) -> None:
        """Rename the entries."""
        before = self.tensors
        self.tensors, self.unknown = rename(before, rules, reverse=reverse)
        renamed = sum(old != new for old, new in zip(before, self.tensors, strict=True))
        if renamed:
            self.steps.append(Step(f"{renamed} renamed", len(before), len(self.tensors)))

    def lose(self, what: str, tensors: Mapping[str, Tensor]) -> None:
        """Leave out what is still there of these entries, and write the loss down."""
        if tensors:
            self.losses.append(Loss.of(what, tensors))
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in tensors}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How one implementation's state dicts of one architecture differ from ours."""

    format: CheckpointFormat
    architecture: Literal["deformable_detr", "detr"]
    marks: tuple[str, ...]
    """Names that together tell such a state dict from all others."""
    rules: Rules
    """Names here and there, special ones before general ones."""
    synonyms: Rules = ()
    """Further names that are understood, but not written."""
    own_resnet: Rules = ()
    """Names of its own ResNet, where it has one besides torchvision's."""
    repeats_heads: bool = False
    """Whether a head that all decoder layers share stands there once per layer, and the encoder's after the last."""
    aliases: str | None = None
    """The decoder's prefix, where it names the heads that it uses a second time."""
    detector_prefix: str | None = None
    """What the detector's names begin with in a model with masks, where it is one part beside the mask head."""
    splits_projections: bool = False
    """Whether attention has separate projections of queries, keys and values."""
    has_neck_biases: bool = True
    """Whether the neck's convolutions have biases."""
    counts_batches: bool | None = False
    """Whether the backbone's norms count batches; None: as they come."""
    container: str | None = None
    """The entry of a PyTorch file that holds the state dict; None: it is the file's whole content."""
    remarks: tuple[str, ...] = ()
    """What else to know when moving weights."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Tell whether a state dict is of this lineage."""
        prefixes = ("", *filter(None, (self.detector_prefix,)))
        return any(all(prefix + mark in state for mark in self.marks) for prefix in prefixes)

    def read(self, state: Mapping[str, Tensor]) -> Translation:
        """Translate a state dict of this lineage to our names.

        Raises:
            ValueError: If it holds a head under two names with different values.
        """
        done = Translation(dict(state))
        if self.detector_prefix:
            beside = self.detector_prefix
            done.apply("names of the detector in the model", lambda tensors: without_detector_prefix(tensors, beside))
        refines = None
        if self.aliases:
            # Where it refines, and only there, the decoder holds the box heads too.
            refines = any(name.startswith(f"{self.aliases}bbox_embed.") for name in state)
            prefix = self.aliases
            done.apply("second names of heads left out", lambda tensors: without_aliases(tensors, prefix))
        if self.splits_projections:
            done.apply("projections of queries, keys and values stacked", stack_projections)
        done.rename((*self.own_resnet, *self.rules, *self.synonyms), reverse=True)
        if self.repeats_heads:
            done.apply("heads put in their places", lambda tensors: gather_heads(tensors, refines=refines))
        if not self.has_neck_biases:
            done.apply("biases of zero added to the neck", add_neck_biases)
        return done

    def write(self, state: Mapping[str, Tensor], *, own_resnet: bool = False) -> Translation:
        """Translate a state dict in our names to this lineage's.

        Args:
            state: Of a model of this architecture.
            own_resnet: Whether the backbone has the names of this implementation's own ResNet.
        """
        done = Translation(dict(state))
        refines, two_stage = refines_boxes(state), is_two_stage(state)
        if self.counts_batches is not None:
            counts = with_batch_counts if self.counts_batches else without_batch_counts
            done.apply(f"counts of batches {'added' if self.counts_batches else 'left out'}", counts)
        if not self.has_neck_biases:
            done.lose("biases of the neck's convolutions, which its model lacks", neck_biases(state))
        if self.repeats_heads:
            apart = encoder_heads_apart(state)
            if apart:
                what = "difference of the encoder's heads from the decoder's, which its model has alone"
                done.losses.append(Loss.of(what, apart))
            done.apply("heads numbered by layer", spread_heads)
        done.rename((*self.own_resnet, *self.rules) if own_resnet else self.rules, reverse=False)
        if self.splits_projections:
            done.apply("projections of queries, keys and values split", split_projections)
        if self.aliases:
            prefix = self.aliases
            done.apply(
                "second names of heads added",
                lambda tensors: add_aliases(tensors, prefix, refines=refines, two_stage=two_stage),
            )
        if self.detector_prefix and has_masks(state):
            beside = self.detector_prefix
            done.apply(
                "names of the detector beside its mask head", lambda tensors: add_detector_prefix(tensors, beside)
            )
        return done
