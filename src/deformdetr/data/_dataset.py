"""Annotated images as a PyTorch dataset, and its batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from deformdetr._coco_types import LabelMap
from deformdetr._files import FileError, expand_path
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._coco import ReadOptions, read_annotations, read_coco
from deformdetr.data._config import (
    DEFAULT_DECODING,
    AnyDataConfig,
    DataConfig,
    DecodeConfig,
    ShapesConfig,
    ShardsConfig,
    Split,
)
from deformdetr.data._errors import DatasetError, dataset_error
from deformdetr.data._images import ImageFiles
from deformdetr.data._sampler import SeededIndex
from deformdetr.data._shapes import draw_shapes
from deformdetr.data._shards import Shards
from deformdetr.data._transforms import (
    SampleTransform,
    eval_transforms,
    make_sample,
    split_sample,
    train_transforms,
)
from deformdetr.structures import ImageBatch, Target


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Dataset of transformed images and their targets.

    Target boxes are cxcywh, as fractions of the transformed image. A target also has `image_id`, `orig_size` ((height,
    width) of the file), `size` ((height, width) after the transforms), and `masks` if they are read.

    Args:
        annotations: Boxes, labels and masks.
        images: Function that returns the image at an index, as 8-bit RGB.
        transforms: Function from an 8-bit sample to a normalized one.

    Attributes:
        annotations: Boxes, labels and masks.
        files: The image files, or `None` if images do not come from files.

    Examples:
        >>> from deformdetr.data import DetectionDataset, ShapesConfig, draw_shapes, eval_transforms
        >>> annotations, images = draw_shapes(ShapesConfig(num_val=2, image_size=64), "val")
        >>> transforms = eval_transforms(32, 100, mean=(0, 0, 0), std=(1, 1, 1))
        >>> image, target = DetectionDataset(annotations, images.__getitem__, transforms=transforms)[0]
        >>> image.shape
        torch.Size([3, 32, 32])
    """

    def __init__(
        self,
        annotations: Annotations,
        images: Callable[[int], UInt8[Tensor, "3 height width"]],
        *,
        transforms: SampleTransform,
    ) -> None:
        self.annotations = annotations
        self._images = images
        self.files = images if isinstance(images, ImageFiles) else None
        self._transforms = transforms

    @property
    def label_map(self) -> LabelMap:
        """The category of each label."""
        return self.annotations.label_map

    @property
    def report(self) -> DatasetReport:
        """What was kept, changed and skipped while reading."""
        return self.annotations.report

    def coco_ground_truth(self) -> COCO:
        """Return a pycocotools object with published boxes, crowds as ignored regions, and no degenerate boxes."""
        return self.annotations.ground_truth()

    def summary(self) -> str:
        """Return a few lines of text: the report, the boxes per class and the distribution of their sizes."""
        return self.annotations.summary()

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, index: int | SeededIndex) -> tuple[Float[Tensor, "3 height width"], Target]:
        """Return one sample. A `SeededIndex` seeds its augmentation, without changing the global generator.

        Raises:
            IndexError: If there is no such sample.
            DatasetError: If the image file cannot be decoded, or its size differs from the annotated one.
        """
        if isinstance(index, SeededIndex):
            # `torch.manual_seed` would also seed the GPU's generator, which dropout uses.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(index.seed)
                return self._load(index.position, self._transforms)
        return self._load(index, self._transforms)

    def untransformed(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], Target]:
        """Return the 8-bit image before resizing and augmentation, and its target, for drawing."""
        return self._load(index, lambda sample: sample)

    def _load(self, index: int, transforms: SampleTransform) -> tuple[Tensor, Target]:
        position = range(len(self))[index]
        boxes, labels = self.annotations.of_image(position)
        masks = self.annotations.masks_of_image(position)
        sample = make_sample(
            self._images(position),
            torch.from_numpy(boxes),
            torch.from_numpy(labels),
            None if masks is None else torch.from_numpy(masks),
        )
        image, target = split_sample(transforms(sample))
        target["image_id"] = self.annotations.image_ids[position]
        target["orig_size"] = torch.from_numpy(self.annotations.sizes[position].copy())
        return image, target


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[ImageBatch, list[Target]]:
    """Pad images to one batch. Targets stay a list, with boxes as fractions of each image without its padding.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from deformdetr.data import ShapesConfig, build_dataset, collate
        >>> dataset = build_dataset(ShapesConfig(num_train=4, image_size=64), "train")
        >>> images, targets = next(iter(DataLoader(dataset, batch_size=2, collate_fn=collate)))
        >>> images.images.shape, len(targets)
        (torch.Size([2, 3, 64, 64]), 2)
    """
    images, targets = zip(*samples, strict=True)
    return ImageBatch.from_images(images), list(targets)


class Datasets(NamedTuple):
    """Both splits of a dataset, with the same label map."""

    train: DetectionDataset
    val: DetectionDataset


def build_datasets(config: AnyDataConfig, *, masks: bool = False) -> Datasets:
    """Read and check both splits. Image files must exist, but are not decoded.

    Args:
        config: The dataset.
        masks: Whether targets have masks. Boxes without one are then left out.

    Raises:
        DatasetError: If there are problems. The message lists those of both splits.

    Examples:
        >>> from deformdetr.data import ShapesConfig, build_datasets
        >>> train, val = build_datasets(ShapesConfig(num_train=4, num_val=2))
        >>> len(train), len(val)
        (4, 2)
    """
    if isinstance(config, ShapesConfig):
        return Datasets(build_dataset(config, "train", masks=masks), build_dataset(config, "val", masks=masks))
    problems: list[str] = []
    label_map = config.label_map
    train = val = None
    try:
        train = build_dataset(config, "train", masks=masks)
        label_map = train.label_map
    except DatasetError as error:
        problems.extend(error.problems)
    try:
        val = _annotated_dataset(config, "val", label_map, masks=masks)
    except DatasetError as error:
        problems.extend(error.problems)
    if train is None or val is None:
        raise dataset_error(problems)
    return Datasets(train, val)


def build_dataset(config: AnyDataConfig, split: Split, *, masks: bool = False) -> DetectionDataset:
    """Read and check one split. Image files must exist, but are not decoded.

    Without a `label_map` in the config, the training annotations determine the labels, and are read for either split.

    Args:
        config: The dataset.
        split: "train" or "val".
        masks: Whether targets have masks. Boxes without one are then left out.

    Raises:
        DatasetError: If there are problems, or no box to train on. The message lists all problems.

    Examples:
        >>> from deformdetr.data import ShapesConfig, build_dataset
        >>> dataset = build_dataset(ShapesConfig(num_train=4, image_size=64), "train")
        >>> image, target = dataset[0]
        >>> image.shape
        torch.Size([3, 64, 64])
    """
    if isinstance(config, ShapesConfig):
        annotations, images = draw_shapes(config, split, masks=masks)
        return DetectionDataset(annotations, images.__getitem__, transforms=_transforms(config, split))
    label_map = config.label_map
    if label_map is None and split == "val":
        label_map = build_dataset(config, "train").label_map
    return _annotated_dataset(config, split, label_map, masks=masks)


def read_dataset(
    images: str | Path, annotations: str | Path, decode: DecodeConfig = DEFAULT_DECODING
) -> DetectionDataset:
    """Read and check one annotation file, as a dataset of images as they are.

    Args:
        images: Folder that the file names are relative to.
        annotations: The COCO JSON file.
        decode: How image files are read.

    Raises:
        DatasetError: If there are problems.
    """
    read = read_coco(images, annotations, decode=decode)
    files = ImageFiles([Path(images, name) for name in read.file_names], read.sizes, decode)
    return DetectionDataset(read, files, transforms=lambda sample: sample)


def _annotated_dataset(
    config: DataConfig | ShardsConfig, split: Split, label_map: LabelMap | None, *, masks: bool
) -> DetectionDataset:
    options = ReadOptions(label_map, config.ignore_unknown_categories, masks, config.decode)
    try:
        read = (
            _read_files(config, split, options)
            if isinstance(config, DataConfig)
            else _read_shards(config, split, options)
        )
    except FileError as error:
        raise DatasetError(str(error)) from error
    annotations, images = read
    if split == "train" and not annotations.report.boxes:
        raise DatasetError(f"{annotations.report}: there are no boxes to train on")
    return DetectionDataset(annotations, images, transforms=_transforms(config, split))


def _read_files(config: DataConfig, split: Split, options: ReadOptions) -> tuple[Annotations, ImageFiles]:
    is_train = split == "train"
    folder = expand_path(config.train_images if is_train else config.val_images)
    file = expand_path(config.train_annotations if is_train else config.val_annotations)
    annotations = read_annotations(file, folder, options)
    paths = [folder / name for name in annotations.file_names]
    return annotations, ImageFiles(paths, annotations.sizes, config.decode)


def _read_shards(config: ShardsConfig, split: Split, options: ReadOptions) -> tuple[Annotations, ImageFiles]:
    cache = None if config.cache is None else expand_path(config.cache)
    location = config.train if split == "train" else config.val
    shards = Shards(location, cache=cache, cache_bytes=1e9 * config.cache_gb)
    annotations = read_annotations(shards.annotations, None, options)
    if len(annotations.file_names) != len(shards):
        counts = f"{len(annotations.file_names):,} images, but the index {len(shards):,}"
        raise DatasetError(f"{shards.annotations} has {counts}")
    paths = [shards.path(name) for name in annotations.file_names]
    return annotations, ImageFiles(paths, annotations.sizes, config.decode, read=shards.read)


def _transforms(config: AnyDataConfig, split: Split) -> SampleTransform:
    if split == "train":
        return train_transforms(config.augment, config.image_mean, config.image_std)
    return eval_transforms(config.eval_short_side, config.eval_max_size, config.image_mean, config.image_std)
