"""The benchmark cases as data: sizes, and the directions, devices and dtypes that they run in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal, NamedTuple, TypeAlias, get_args

Kind: TypeAlias = Literal["operator", "overhead", "model", "matcher", "criterion", "accelerated", "layers", "rates"]
Device: TypeAlias = Literal["cpu", "cuda"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
Direction: TypeAlias = Literal["forward", "backward", "forward_backward", "training_step"]
Access: TypeAlias = Literal["add", "read"]
Levels: TypeAlias = tuple[tuple[int, int], ...]

DIRECTIONS: Mapping[Direction, str] = {
    "forward": "forward",
    "backward": "backward",
    "forward_backward": "forward and backward",
    "training_step": "training step",
}
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class OperatorSizes:
    """One call of multi-scale deformable attention; without `queries`, every pixel is one, as in an encoder."""

    levels: Levels
    batch: int
    queries: int | None = None
    heads: int = 8
    channels: int = 32
    points: int = 4

    @property
    def pixels(self) -> int:
        return sum(height * width for height, width in self.levels)

    @property
    def n_queries(self) -> int:
        return self.pixels if self.queries is None else self.queries

    def quick(self) -> "OperatorSizes":
        levels = tuple((-(-height // 16), -(-width // 16)) for height, width in self.levels)
        queries = None if self.queries is None else min(self.queries, 10)
        return OperatorSizes(levels, min(self.batch, 2), queries, heads=4, channels=8)


@dataclass(frozen=True)
class ModelSizes:
    """A whole model, by the name of its preset or class of transformers, and one image with so many objects."""

    preset: str
    height: int
    width: int
    targets: int = 10
    queries: int = 300
    layers: int = 6

    def quick(self) -> "ModelSizes":
        return replace(self, height=160, width=160, targets=3, queries=20, layers=2)


@dataclass(frozen=True)
class MatchingSizes:
    """Matching of all decoder layers, and of the encoder's `proposals`; `targets` is the number of objects by image."""

    targets: tuple[int, ...]
    proposals: int = 0
    queries: int = 300
    classes: int = 91
    layers: int = 6

    def quick(self) -> "MatchingSizes":
        return MatchingSizes(self.targets[:2], min(self.proposals, 90), queries=70, classes=7, layers=2)


@dataclass(frozen=True)
class AccessSizes:
    """Accesses to random ones of so many rows of 32 channels. An encoder of two images makes 22.8 million."""

    access: Access
    rows: int
    accesses: int = 2**22

    def quick(self) -> "AccessSizes":
        return replace(self, rows=min(self.rows, 64), accesses=32)


@dataclass(frozen=True)
class Case:
    """Sizes under a name, and the dtypes that they run in on each device."""

    kind: Kind
    name: str
    sizes: OperatorSizes | ModelSizes | MatchingSizes | AccessSizes
    directions: tuple[Direction, ...]
    cpu: tuple[Dtype, ...] = ()
    cuda: tuple[Dtype, ...] = ()

    def __str__(self) -> str:
        devices = [f"{device} ({', '.join(dtypes)})" for device in ("cpu", "cuda") if (dtypes := getattr(self, device))]
        return f"{self.kind}/{self.name}: {', '.join(self.directions)} on {' and '.join(devices)}"

    def quick(self) -> "Case":
        """Return the same case at sizes small enough for tests."""
        return replace(self, sizes=self.sizes.quick())


class Task(NamedTuple):
    """One measurement, of all providers."""

    case: Case
    dtype: Dtype
    direction: Direction

    def __str__(self) -> str:
        return f"{self.case.kind}/{self.case.name} {self.dtype} {self.direction}"


# Levels of an image of 800 x 1333 pixels at strides 8 to 64, one of 1600 x 2666, and 640 x 640 at strides 8 to 32.
_COCO: Levels = ((100, 167), (50, 84), (25, 42), (13, 21))
_LARGE: Levels = ((200, 334), (100, 167), (50, 84), (25, 42))
_SQUARE: Levels = ((80, 80), (40, 40), (20, 20))
_ON_GPUS = {
    "encoder_800x1333_b2": OperatorSizes(_COCO, 2),
    "decoder300_800x1333_b2": OperatorSizes(_COCO, 2, 300),
    "decoder300_800x1333_b4": OperatorSizes(_COCO, 4, 300),
    "decoder900_800x1333_b2": OperatorSizes(_COCO, 2, 900),
    "decoder900_800x1333_b4": OperatorSizes(_COCO, 4, 900),
    "dino_encoder_800x1333_b4": OperatorSizes(_COCO, 4),
    # 900 queries and 200 denoising queries.
    "dino_decoder1100_800x1333_b4": OperatorSizes(_COCO, 4, 1100),
    "rtdetr_decoder300_640x640_b16": OperatorSizes(_SQUARE, 16, 300),
    "encoder_1600x2666_b1": OperatorSizes(_LARGE, 1),
    "decoder300_800x1333_b1": OperatorSizes(_COCO, 1, 300),
}
_ON_CPUS = {
    "encoder_480x640_b1": OperatorSizes(((60, 80), (30, 40), (15, 20), (8, 10)), 1),
    "decoder300_800x1216_b2": OperatorSizes(((100, 152), (50, 76), (25, 38), (13, 19)), 2, 300),
    "decoder300_640x640_b4": OperatorSizes(_SQUARE, 4, 300),
}
_TRAINED = {
    "multi_scale_640x800_b1": ModelSizes("deformable_detr_r50", 640, 800),
    "multi_scale_800x1066_b1": ModelSizes("deformable_detr_r50", 800, 1066),
}
_VARIANTS = {
    "single_scale_640x800_b1": ModelSizes("deformable_detr_r50_single_scale", 640, 800),
    "single_scale_dc5_640x800_b1": ModelSizes("deformable_detr_r50_single_scale_dc5", 640, 800),
    "refine_640x800_b1": ModelSizes("deformable_detr_r50_refine", 640, 800),
    "two_stage_640x800_b1": ModelSizes("deformable_detr_r50_two_stage", 640, 800),
}
_TRANSFORMERS = ("DeformableDetrForObjectDetection", "Mask2FormerForUniversalSegmentation")
_TRANSFORMERS += ("RTDetrForObjectDetection", "DFineForObjectDetection")
# Few objects, as in photographs of COCO, which have 7 on average, and many, as in crowds.
_MATCHING = {
    "few_b2": MatchingSizes((3, 12)),
    "few_b16": MatchingSizes((3, 12) * 8),
    "many_b4": MatchingSizes((60, 40) * 2),
    "proposals_b2": MatchingSizes((3, 12), proposals=22223),
}
# Two images at 800 x 1333 with eight heads, their coarsest level, and a few rows that all samples hit.
_ROWS = {"scattered": 2 * 22223 * 8, "coarsest": 2 * 273 * 8, "hot": 64}
_ACCESSES = {f"{kind}_{place}": AccessSizes(kind, rows) for kind in get_args(Access) for place, rows in _ROWS.items()}
_PASSES: tuple[Direction, ...] = ("forward", "forward_backward")
_STEPS: tuple[Direction, ...] = ("forward", "training_step")
_FLOAT32: tuple[Dtype, ...] = ("float32",)
_ANYWHERE = (_FLOAT32, _FLOAT32)
_TINY = OperatorSizes(((4, 4), (2, 2)), 1, 4, heads=2, channels=8, points=2)

CASES = (
    *(
        Case("operator", name, sizes, ("backward", *_PASSES), cuda=(*_FLOAT32, "bfloat16"))
        for name, sizes in _ON_GPUS.items()
    ),
    *(Case("operator", name, sizes, _PASSES, cpu=_FLOAT32) for name, sizes in _ON_CPUS.items()),
    Case("overhead", "decoder4_4x4_b1", _TINY, _PASSES, *_ANYWHERE),
    *(Case("model", name, sizes, _STEPS, *_ANYWHERE) for name, sizes in _TRAINED.items()),
    *(Case("model", name, sizes, ("forward",), *_ANYWHERE) for name, sizes in _VARIANTS.items()),
    *(Case("matcher", name, sizes, ("forward",), *_ANYWHERE) for name, sizes in _MATCHING.items()),
    *(Case("criterion", name, sizes, ("forward_backward",), *_ANYWHERE) for name, sizes in _MATCHING.items()),
    *(Case("accelerated", name, ModelSizes(name, 480, 640), _PASSES, cpu=_FLOAT32) for name in _TRANSFORMERS),
    Case("layers", "multi_scale_480x640_b1", ModelSizes("deformable_detr_r50", 480, 640), _STEPS, cpu=_FLOAT32),
    *(Case("rates", name, sizes, ("forward",), cuda=_FLOAT32) for name, sizes in _ACCESSES.items()),
)


def select(kinds: Sequence[Kind], patterns: Sequence[str] = ()) -> list[Case]:
    """Return the cases of these kinds whose `kind/name` contains one of the patterns, which may have wildcards."""
    return [
        case
        for case in CASES
        if case.kind in kinds
        and (not patterns or any(fnmatch(f"{case.kind}/{case.name}", f"*{pattern}*") for pattern in patterns))
    ]


def tasks(cases: Sequence[Case], device: Device) -> list[Task]:
    """Return every measurement of the cases on a device."""
    return [Task(case, dtype, each) for case in cases for dtype in getattr(case, device) for each in case.directions]
