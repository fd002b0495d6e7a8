"""What is measured, as data: the shapes, and the devices, dtypes and directions in which they make sense."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import ClassVar, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["operator", "model", "matcher", "criterion"]
Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Direction: TypeAlias = Literal["forward", "backward", "forward_backward", "training_step"]
Variant: TypeAlias = Literal["single_scale", "single_scale_dc5", "multi_scale", "refine", "two_stage"]
Levels: TypeAlias = tuple[tuple[int, int], ...]

KINDS: tuple[Kind, ...] = ("operator", "model", "matcher", "criterion")


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """What all kinds have."""

    kind: ClassVar[Kind]
    name: str
    devices: tuple[Device, ...] = ("cpu", "cuda")
    cpu_dtypes: tuple[Dtype, ...] = ("float32",)
    cuda_dtypes: tuple[Dtype, ...] = ("float32",)
    directions: tuple[Direction, ...] = ("forward",)

    @abstractmethod
    def quick(self) -> "Case":
        """Give the same case at sizes for which tests have time."""


@dataclass(frozen=True, kw_only=True)
class OperatorCase(Case):
    """One call of multi-scale deformable attention."""

    kind: ClassVar[Kind] = "operator"
    levels: Levels
    batch: int
    queries: int | None = None
    """None: every pixel asks, as in an encoder."""
    heads: int = 8
    channels: int = 32
    """Per head."""
    points: int = 4
    cuda_dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    directions: tuple[Direction, ...] = ("forward", "backward", "forward_backward")

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def n_queries(self) -> int:
        return self.pixels if self.queries is None else self.queries

    def quick(self) -> "OperatorCase":
        levels = tuple((-(-height // 16), -(-width // 16)) for height, width in self.levels)
        queries = None if self.queries is None else min(self.queries, 10)
        return replace(self, levels=levels, batch=min(self.batch, 2), queries=queries, heads=4, channels=8)


@dataclass(frozen=True, kw_only=True)
class ModelCase(Case):
    """A whole model with ResNet-50: predictions, or one step of training."""

    kind: ClassVar[Kind] = "model"
    variant: Variant
    height: int
    width: int
    batch: int
    targets: int = 10
    """Per image."""
    tiny: bool = False
    cuda_dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")

    def quick(self) -> "ModelCase":
        return replace(self, height=160, width=160, batch=min(self.batch, 2), targets=3, tiny=True)


@dataclass(frozen=True, kw_only=True)
class SetCase(Case):
    """The predictions of all decoder layers for a batch of images, and the images' targets."""

    targets: tuple[int, ...]
    """How many there are on each image."""
    queries: int = 300
    classes: int = 91
    layers: int = 6
    proposals: int = 0
    """Queries of one layer more, the encoder's of a two-stage model."""

    def quick(self) -> "SetCase":
        return replace(
            self, targets=self.targets[:2], queries=70, classes=7, layers=2, proposals=min(self.proposals, 90)
        )


@dataclass(frozen=True, kw_only=True)
class MatcherCase(SetCase):
    kind: ClassVar[Kind] = "matcher"


@dataclass(frozen=True, kw_only=True)
class CriterionCase(SetCase):
    """Matching, all losses and their gradients."""

    kind: ClassVar[Kind] = "criterion"
    directions: tuple[Direction, ...] = ("forward_backward",)


class Task(NamedTuple):
    """One measurement, of all providers."""

    case: Case
    dtype: Dtype
    direction: Direction

    @property
    def key(self) -> tuple[str, str, str]:
        """Tell it from the others of its kind."""
        return self.case.name, self.dtype, self.direction

    def __str__(self) -> str:
        return f"{self.case.kind}/{self.case.name} {self.dtype} {self.direction}"


# An image of 800 x 1333 pixels, at strides 8 to 64; one of 1600 x 2666; and 640 x 640 at strides 8 to 32.
COCO: Levels = ((100, 167), (50, 84), (25, 42), (13, 21))
LARGE: Levels = ((200, 334), (100, 167), (50, 84), (25, 42))
SQUARE: Levels = ((80, 80), (40, 40), (20, 20))

# Half precision as well where an implementation that is compared has no other.
_ALL_DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
_CPU_DIRECTIONS: tuple[Direction, ...] = ("forward", "forward_backward")
_TRAINED: tuple[Direction, ...] = ("forward", "training_step")

OPERATOR_CASES = (
    OperatorCase(name="encoder_800x1333_b2", levels=COCO, batch=2, devices=("cuda",), cuda_dtypes=_ALL_DTYPES),
    OperatorCase(name="decoder300_800x1333_b2", levels=COCO, batch=2, queries=300, devices=("cuda",)),
    OperatorCase(
        name="decoder300_800x1333_b4", levels=COCO, batch=4, queries=300, devices=("cuda",), cuda_dtypes=_ALL_DTYPES
    ),
    OperatorCase(name="decoder900_800x1333_b2", levels=COCO, batch=2, queries=900, devices=("cuda",)),
    OperatorCase(name="decoder900_800x1333_b4", levels=COCO, batch=4, queries=900, devices=("cuda",)),
    OperatorCase(name="dino_encoder_800x1333_b4", levels=COCO, batch=4, devices=("cuda",)),
    # 900 queries and 200 that are denoised.
    OperatorCase(name="dino_decoder1100_800x1333_b4", levels=COCO, batch=4, queries=1100, devices=("cuda",)),
    OperatorCase(name="rtdetr_decoder300_640x640_b16", levels=SQUARE, batch=16, queries=300, devices=("cuda",)),
    OperatorCase(name="encoder_1600x2666_b1", levels=LARGE, batch=1, devices=("cuda",)),
    OperatorCase(
        name="decoder300_800x1333_b1", levels=COCO, batch=1, queries=300, devices=("cuda",), directions=("forward",)
    ),
    OperatorCase(
        name="encoder_480x640_b1",
        levels=((60, 80), (30, 40), (15, 20), (8, 10)),
        batch=1,
        devices=("cpu",),
        directions=_CPU_DIRECTIONS,
    ),
    OperatorCase(
        name="decoder300_800x1216_b2",
        levels=((100, 152), (50, 76), (25, 38), (13, 19)),
        batch=2,
        queries=300,
        devices=("cpu",),
        directions=_CPU_DIRECTIONS,
    ),
    OperatorCase(
        name="decoder300_640x640_b4",
        levels=SQUARE,
        batch=4,
        queries=300,
        devices=("cpu",),
        directions=_CPU_DIRECTIONS,
    ),
)

MODEL_CASES = (
    ModelCase(
        name="multi_scale_640x800_b1", variant="multi_scale", height=640, width=800, batch=1, directions=_TRAINED
    ),
    ModelCase(
        name="multi_scale_800x1066_b1", variant="multi_scale", height=800, width=1066, batch=1, directions=_TRAINED
    ),
    ModelCase(
        name="multi_scale_800x1066_b4",
        variant="multi_scale",
        height=800,
        width=1066,
        batch=4,
        directions=_TRAINED,
        devices=("cuda",),
    ),
    ModelCase(name="single_scale_640x800_b1", variant="single_scale", height=640, width=800, batch=1),
    ModelCase(name="single_scale_dc5_640x800_b1", variant="single_scale_dc5", height=640, width=800, batch=1),
    ModelCase(name="refine_640x800_b1", variant="refine", height=640, width=800, batch=1),
    ModelCase(name="two_stage_640x800_b1", variant="two_stage", height=640, width=800, batch=1),
)

# Numbers of objects as on photographs of COCO, which has 7 on average, and as in crowds.
_FEW, _MANY = (3, 12), (60, 40)
MATCHER_CASES = (
    MatcherCase(name="few_b2", targets=_FEW),
    MatcherCase(name="few_b16", targets=_FEW * 8),
    MatcherCase(name="many_b4", targets=_MANY * 2),
    MatcherCase(name="proposals_b2", targets=_FEW, proposals=22223),
)
CRITERION_CASES = (
    CriterionCase(name="few_b2", targets=_FEW),
    CriterionCase(name="few_b16", targets=_FEW * 8),
    CriterionCase(name="many_b4", targets=_MANY * 2),
    CriterionCase(name="proposals_b2", targets=_FEW, proposals=22223),
)

CASES: tuple[Case, ...] = (*OPERATOR_CASES, *MODEL_CASES, *MATCHER_CASES, *CRITERION_CASES)


def select(kinds: Sequence[Kind], patterns: Sequence[str]) -> list[Case]:
    """Give the cases of some kinds whose `kind/name` contains one of the patterns, which may have wildcards."""
    return [
        case
        for case in CASES
        if case.kind in kinds
        and (not patterns or any(fnmatch(f"{case.kind}/{case.name}", f"*{pattern}*") for pattern in patterns))
    ]


def tasks(cases: Sequence[Case], device: Device) -> Iterator[Task]:
    """Go through what there is to measure on a device."""
    for case in cases:
        if device in case.devices:
            for dtype in case.cpu_dtypes if device == "cpu" else case.cuda_dtypes:
                for direction in case.directions:
                    yield Task(case, dtype, direction)
