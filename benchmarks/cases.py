"""The benchmark cases as data: shapes, and the devices, dtypes and directions they run in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatch
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

Kind: TypeAlias = Literal["operator", "overhead", "model", "matcher", "criterion"]
Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Direction: TypeAlias = Literal["forward", "backward", "forward_backward", "training_step"]
Variant: TypeAlias = Literal["single_scale", "single_scale_dc5", "multi_scale", "refine", "two_stage"]
Levels: TypeAlias = tuple[tuple[int, int], ...]

KINDS: tuple[Kind, ...] = ("operator", "overhead", "model", "matcher", "criterion")


class Dtypes(NamedTuple):
    """The dtypes that a case runs in on each device."""

    cpu: tuple[Dtype, ...] = ()
    cuda: tuple[Dtype, ...] = ()


ON_CPU = Dtypes(cpu=("float32",))
ON_GPU = Dtypes(cuda=("float32", "bfloat16"))
# Some implementations have no half precision but float16.
ON_GPU_WITH_FLOAT16 = Dtypes(cuda=("float32", "float16", "bfloat16"))
ON_BOTH = Dtypes(cpu=("float32",), cuda=("float32", "bfloat16"))
ON_BOTH_IN_FLOAT32 = Dtypes(cpu=("float32",), cuda=("float32",))


@dataclass(frozen=True)
class Case(ABC):
    """What all kinds of cases have in common."""

    kind: ClassVar[Kind]
    name: str
    _: KW_ONLY
    dtypes: Dtypes
    directions: tuple[Direction, ...] = ("forward",)

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(device for device in get_args(Device) if getattr(self.dtypes, device))

    @abstractmethod
    def quick(self) -> "Case":
        """Return the same case at sizes small enough for tests."""


@dataclass(frozen=True)
class OperatorCase(Case):
    """One call of multi-scale deformable attention; without `queries`, every pixel is one, as in an encoder."""

    kind: ClassVar[Kind] = "operator"
    levels: Levels
    batch: int
    queries: int | None = None
    _: KW_ONLY
    heads: int = 8
    channels: int = 32
    points: int = 4
    dtypes: Dtypes = ON_GPU
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


@dataclass(frozen=True)
class OverheadCase(OperatorCase):
    """An operator call so small that Python's overhead is nearly all of its time."""

    kind: ClassVar[Kind] = "overhead"


@dataclass(frozen=True)
class ModelCase(Case):
    """A whole model with ResNet-50: predictions, or one training step."""

    kind: ClassVar[Kind] = "model"
    variant: Variant
    height: int
    width: int
    batch: int = 1
    _: KW_ONLY
    targets: int = 10
    tiny: bool = False
    dtypes: Dtypes = ON_BOTH

    def quick(self) -> "ModelCase":
        return replace(self, height=160, width=160, batch=min(self.batch, 2), targets=3, tiny=True)


@dataclass(frozen=True)
class MatcherCase(Case):
    """Matching of all decoder layers, and of the encoder's `proposals`; `targets` is the number of objects by image."""

    kind: ClassVar[Kind] = "matcher"
    targets: tuple[int, ...]
    _: KW_ONLY
    queries: int = 300
    classes: int = 91
    layers: int = 6
    proposals: int = 0
    dtypes: Dtypes = ON_BOTH_IN_FLOAT32

    def quick(self) -> "MatcherCase":
        sizes = {"queries": 70, "classes": 7, "layers": 2, "proposals": min(self.proposals, 90)}
        return replace(self, targets=self.targets[:2], **sizes)


@dataclass(frozen=True)
class CriterionCase(MatcherCase):
    """Matching, all losses and their gradients."""

    kind: ClassVar[Kind] = "criterion"
    _: KW_ONLY
    directions: tuple[Direction, ...] = ("forward_backward",)


class Task(NamedTuple):
    """One measurement, of all providers."""

    case: Case
    dtype: Dtype
    direction: Direction

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case.name, self.dtype, self.direction

    def __str__(self) -> str:
        return f"{self.case.kind}/{self.case.name} {self.dtype} {self.direction}"


# Levels of an image of 800 x 1333 pixels at strides 8 to 64, one of 1600 x 2666, and 640 x 640 at strides 8 to 32.
COCO: Levels = ((100, 167), (50, 84), (25, 42), (13, 21))
LARGE: Levels = ((200, 334), (100, 167), (50, 84), (25, 42))
SQUARE: Levels = ((80, 80), (40, 40), (20, 20))

_INFERENCE_AND_TRAINING: tuple[Direction, ...] = ("forward", "forward_backward")
_WITH_STEP: tuple[Direction, ...] = ("forward", "training_step")


def _on_cpu(name: str, levels: Levels, batch: int, queries: int | None = None) -> OperatorCase:
    return OperatorCase(name, levels, batch, queries, dtypes=ON_CPU, directions=_INFERENCE_AND_TRAINING)


OPERATOR_CASES = (
    OperatorCase("encoder_800x1333_b2", COCO, 2, dtypes=ON_GPU_WITH_FLOAT16),
    OperatorCase("decoder300_800x1333_b2", COCO, 2, 300),
    OperatorCase("decoder300_800x1333_b4", COCO, 4, 300, dtypes=ON_GPU_WITH_FLOAT16),
    OperatorCase("decoder900_800x1333_b2", COCO, 2, 900),
    OperatorCase("decoder900_800x1333_b4", COCO, 4, 900),
    OperatorCase("dino_encoder_800x1333_b4", COCO, 4),
    # 900 queries and 200 denoising queries.
    OperatorCase("dino_decoder1100_800x1333_b4", COCO, 4, 1100),
    OperatorCase("rtdetr_decoder300_640x640_b16", SQUARE, 16, 300),
    OperatorCase("encoder_1600x2666_b1", LARGE, 1),
    OperatorCase("decoder300_800x1333_b1", COCO, 1, 300, directions=("forward",)),
    _on_cpu("encoder_480x640_b1", ((60, 80), (30, 40), (15, 20), (8, 10)), 1),
    _on_cpu("decoder300_800x1216_b2", ((100, 152), (50, 76), (25, 38), (13, 19)), 2, 300),
    _on_cpu("decoder300_640x640_b4", SQUARE, 4, 300),
)
OVERHEAD_CASES = (
    OverheadCase(
        "decoder4_4x4_b1",
        ((4, 4), (2, 2)),
        1,
        4,
        heads=2,
        channels=8,
        points=2,
        dtypes=ON_BOTH_IN_FLOAT32,
        directions=_INFERENCE_AND_TRAINING,
    ),
)
MODEL_CASES = (
    ModelCase("multi_scale_640x800_b1", "multi_scale", 640, 800, directions=_WITH_STEP),
    ModelCase("multi_scale_800x1066_b1", "multi_scale", 800, 1066, directions=_WITH_STEP),
    ModelCase("multi_scale_800x1066_b4", "multi_scale", 800, 1066, 4, directions=_WITH_STEP, dtypes=ON_GPU),
    ModelCase("single_scale_640x800_b1", "single_scale", 640, 800),
    ModelCase("single_scale_dc5_640x800_b1", "single_scale_dc5", 640, 800),
    ModelCase("refine_640x800_b1", "refine", 640, 800),
    ModelCase("two_stage_640x800_b1", "two_stage", 640, 800),
)
# Few objects, as in photographs of COCO, which have 7 on average, and many, as in crowds.
_FEW, _MANY = (3, 12), (60, 40)
MATCHER_CASES, CRITERION_CASES = (
    (
        kind("few_b2", _FEW),
        kind("few_b16", _FEW * 8),
        kind("many_b4", _MANY * 2),
        kind("proposals_b2", _FEW, proposals=22223),
    )
    for kind in (MatcherCase, CriterionCase)
)

CASES: tuple[Case, ...] = (*OPERATOR_CASES, *OVERHEAD_CASES, *MODEL_CASES, *MATCHER_CASES, *CRITERION_CASES)


def select(kinds: Sequence[Kind], patterns: Sequence[str]) -> list[Case]:
    """Return the cases of these kinds whose `kind/name` contains one of the patterns, which may have wildcards."""
    return [
        case
        for case in CASES
        if case.kind in kinds
        and (not patterns or any(fnmatch(f"{case.kind}/{case.name}", f"*{pattern}*") for pattern in patterns))
    ]


def tasks(cases: Sequence[Case], device: Device) -> Iterator[Task]:
    """Yield every measurement of the cases on a device."""
    for case in cases:
        for dtype in getattr(case.dtypes, device):
            for direction in case.directions:
                yield Task(case, dtype, direction)
