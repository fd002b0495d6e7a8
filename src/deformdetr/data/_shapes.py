"""A synthetic detection dataset: circles, rectangles and triangles on noise, drawn from a seed."""

import colorsys
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from deformdetr._coco_types import LabelMap, RunLengths, encode_masks
from deformdetr._files import replacing, write_text
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._config import DataConfig, ShapesConfig, Split
from deformdetr.data._segmentations import Segmentations

SHAPES_LABEL_MAP = LabelMap(names=("circle", "rectangle", "triangle"), category_ids=(1, 2, 3))
PANOPTIC_LABEL_MAP = LabelMap(
    names=(*SHAPES_LABEL_MAP.names, "plain", "striped"), category_ids=(1, 2, 3, 4, 5), stuff=(3, 4)
)
SHAPES_STUFF = frozenset(PANOPTIC_LABEL_MAP.stuff)

_Box = tuple[int, int, int, int]
_PLACES_TRIED = 20
_MAX_OVERLAP = 0.15
_DISTRACTOR_LINES = 3


class _Shape(NamedTuple):
    label: int
    box: _Box
    mask: Bool[np.ndarray, "height width"]


def draw_shapes(
    config: ShapesConfig, split: Split, *, masks: bool = False
) -> tuple[Annotations, UInt8[Tensor, "images 3 height width"]]:
    """Draw all images of a split. Each depends only on the seed, the split and its index.

    Boxes are tight around the drawn pixels. Shapes may overlap a little, with the smaller one in front. With `masks`,
    the annotations also have the visible pixels of each shape. With `config.stuff`, both parts of the background come
    before the shapes.

    Examples:
        >>> from deformdetr.data import ShapesConfig, draw_shapes
        >>> annotations, images = draw_shapes(ShapesConfig(num_val=2, image_size=64), "val")
        >>> images.shape
        torch.Size([2, 3, 64, 64])
    """
    count, stream = (config.num_train, 0) if split == "train" else (config.num_val, 1)
    side = config.image_size
    pictures = np.empty((count, side, side, 3), dtype=np.uint8)
    found: list[tuple[int, int, _Box]] = []
    segmentations: list[RunLengths] = []
    for number in range(count):
        generator = np.random.default_rng([config.seed, stream, number])
        pictures[number], shapes = _draw_picture(generator, config)
        found.extend((number, shape.label, shape.box) for shape in shapes)
        if masks:
            segmentations += _encode_visible(shapes)
    boxes = np.array([box for _, _, box in found], dtype=np.float64).reshape(-1, 4)
    published = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    image_index = np.array([number for number, _, _ in found], dtype=np.int64)
    annotations = Annotations(
        file_names=tuple(f"{number + 1:06d}.png" for number in range(count)),
        image_ids=tuple(range(1, count + 1)),
        sizes=np.full((count, 2), side, dtype=np.int64),
        image_index=image_index,
        labels=np.array([label for _, label, _ in found], dtype=np.int64),
        boxes=boxes.astype(np.float32),
        published=published,
        areas=published[:, 2] * published[:, 3],
        is_crowd=np.zeros(len(found), dtype=np.bool_),
        label_map=PANOPTIC_LABEL_MAP if config.stuff else SHAPES_LABEL_MAP,
        report=DatasetReport(
            source=f"shapes ({split}, seed {config.seed})",
            images=count,
            empty_images=count - len(np.unique(image_index)),
            boxes=len(found),
        ),
        segmentations=Segmentations.pack(segmentations) if masks else None,
    )
    return annotations, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def write_shapes(config: ShapesConfig, folder: str | Path) -> DataConfig:
    """Write both splits as PNG files and COCO annotations with masks, and return the config that reads them.

    The files are `train/*.png`, `train.json`, `val/*.png` and `val.json`. Existing ones are replaced.

    Raises:
        OSError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> from deformdetr.data import ShapesConfig, build_dataset, write_shapes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = write_shapes(ShapesConfig(num_train=3, num_val=1), folder)
        ...     len(build_dataset(config, "train"))
        3
    """
    folder = Path(folder)
    splits: tuple[Split, Split] = ("train", "val")
    for split in splits:
        annotations, pictures = draw_shapes(config, split, masks=True)
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, picture in zip(annotations.file_names, pictures, strict=True):
            with replacing(folder / split / name) as unfinished:
                Image.fromarray(picture.permute(1, 2, 0).numpy()).save(unfinished, format="png", compress_level=1)
        # Annotations come last, so that an interrupted run leaves none without their images.
        write_text(folder / f"{split}.json", json.dumps(annotations.to_coco()))
    return DataConfig(
        train_images=folder / "train",
        train_annotations=folder / "train.json",
        val_images=folder / "val",
        val_annotations=folder / "val.json",
        augment=config.augment,
        eval_short_side=config.eval_short_side,
        eval_max_size=config.eval_max_size,
        image_mean=config.image_mean,
        image_std=config.image_std,
        num_workers=config.num_workers,
    )


def _draw_picture(
    generator: np.random.Generator, config: ShapesConfig
) -> tuple[UInt8[np.ndarray, "height width 3"], list[_Shape]]:
    side = config.image_size
    ground = generator.uniform(40, 215, 3)
    background = _background(generator, ground, side)
    drawn = _paint_stripes(generator, background, ground) if config.stuff else []
    canvas = Image.fromarray(background)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(generator.integers(_DISTRACTOR_LINES + 1))):
        ends = generator.uniform(0, side, 4).tolist()
        draw.line(ends, fill=_contrasting_color(generator, ground), width=max(1, side // 96))
    count = int(generator.integers(config.min_objects, config.max_objects + 1))
    smallest, largest = math.log(config.min_size * side), math.log(config.max_size * side)
    # Large shapes come first, so that small ones find room and are never hidden.
    sizes = sorted(np.exp(generator.uniform(smallest, largest, count)).tolist(), reverse=True)
    for size in sizes:
        label = int(generator.integers(SHAPES_LABEL_MAP.num_classes))
        others = [shape.box for shape in drawn if shape.label not in SHAPES_STUFF]
        mask = _place(generator, _outline(generator, label) * size, side, others)
        if mask is not None:
            canvas.paste(_contrasting_color(generator, ground), mask=mask)
            drawn.append(_Shape(label, _tight_box(mask), np.asarray(mask)))
    picture = np.asarray(canvas, dtype=np.int16)
    noise = generator.integers(-config.noise, config.noise, picture.shape, dtype=np.int8, endpoint=True)
    return (picture + noise).clip(0, 255).astype(np.uint8), drawn


def _paint_stripes(
    generator: np.random.Generator, background: UInt8[np.ndarray, "side side 3"], ground: Float64[np.ndarray, "3"]
) -> list[_Shape]:
    """Paint diagonal stripes on one side of a horizontal or vertical border, and return both sides, plain one first."""
    side = len(background)
    rows, columns = np.indices((side, side))
    is_striped = (rows if generator.random() < 0.5 else columns) >= generator.uniform(0.3, 0.7) * side
    if generator.random() < 0.5:
        is_striped = ~is_striped
    width = max(2, side // 24)
    background[is_striped & ((rows + columns) // width % 2 == 0)] = _contrasting_color(generator, ground)
    parts = zip(sorted(SHAPES_STUFF), (~is_striped, is_striped), strict=True)
    return [_Shape(label, _tight_box(Image.fromarray(mask)), mask) for label, mask in parts]


def _encode_visible(shapes: list[_Shape]) -> list[RunLengths]:
    """Encode the pixels of each shape that no later shape covers."""
    encoded: list[RunLengths] = []
    for index, shape in enumerate(shapes):
        visible = shape.mask & ~np.any([other.mask for other in shapes[index + 1 :]], axis=0)
        encoded += encode_masks(torch.from_numpy(visible)[None, None])
    return encoded


def _background(
    generator: np.random.Generator, ground: Float64[np.ndarray, "3"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Shade one color along a random direction."""
    angle = generator.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, side)
    ramp = 0.5 * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None])
    shade = generator.uniform(-40, 40, 3)
    return (ground + ramp[..., None] * shade).clip(0, 255).astype(np.uint8)


def _contrasting_color(generator: np.random.Generator, ground: Float64[np.ndarray, "3"]) -> tuple[int, int, int]:
    color = ground
    for _ in range(_PLACES_TRIED):
        hue, saturation, value = generator.uniform((0, 0.5, 0.3), (1, 1, 1)).tolist()
        color = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if np.abs(color - ground).max() > 90:
            break
    red, green, blue = (int(channel) for channel in color)
    return red, green, blue


def _outline(generator: np.random.Generator, label: int) -> Float64[np.ndarray, "points 2"]:
    """Return the corners of a shape as (x, y), starting at 0, with a longer side of 1. A circle has 64 corners."""
    turn = generator.uniform(0, 2 * math.pi)
    if label == 0:
        angles = np.arange(64) * (2 * math.pi / 64)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif label == 1:
        ratio = generator.uniform(0.45, 1)
        points = np.array([(-1, -ratio), (1, -ratio), (1, ratio), (-1, ratio)])
    else:
        angles = np.array([0, 2, 4]) * math.pi / 3 + generator.uniform(-0.3, 0.3, 3)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    points = points @ rotation
    points -= points.min(axis=0)
    return np.asarray(points / points.max())


def _place(
    generator: np.random.Generator, outline: Float64[np.ndarray, "points 2"], side: int, others: list[_Box]
) -> Image.Image | None:
    """Draw a shape at a random place where it hardly overlaps others, or return `None` if none is found."""
    room = side - 1 - outline.max(axis=0)
    for _ in range(_PLACES_TRIED):
        corner = generator.uniform(0, 1, 2) * room
        low, high = corner, corner + outline.max(axis=0)
        if all(_overlap(low, high, other) <= _MAX_OVERLAP for other in others):
            mask = Image.new("1", (side, side))
            ImageDraw.Draw(mask).polygon([(x, y) for x, y in (outline + corner).tolist()], fill=1)
            return mask
    return None


def _overlap(low: Float64[np.ndarray, "2"], high: Float64[np.ndarray, "2"], other: _Box) -> float:
    """Return the intersection as a fraction of the smaller box."""
    left, top, right, bottom = other
    width = min(high[0], right) - max(low[0], left)
    height = min(high[1], bottom) - max(low[1], top)
    smaller = min((high[0] - low[0]) * (high[1] - low[1]), (right - left) * (bottom - top))
    return float(max(width, 0) * max(height, 0) / smaller)


def _tight_box(mask: Image.Image) -> _Box:
    box = mask.getbbox()
    if box is None:
        raise ValueError("a shape was drawn without a single pixel")
    return box
