"""Annotated images as a PyTorch dataset."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

from deformdetr._files import FileError, expand_path
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._coco import read_coco
from deformdetr.data._config import AnyDataConfig, DataConfig, LabelMap, ShapesConfig, Split
from deformdetr.data._errors import DatasetError, dataset_error
from deformdetr.data._images import ImageArray, ImageFiles
from deformdetr.data._sampler import SeededIndex
from deformdetr.data._shapes import draw_shapes
from deformdetr.data._transforms import (
    Sample,
    SampleTransform,
    eval_transforms,
    make_sample,
    split_sample,
    train_transforms,
)
from deformdetr.structures import Target


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Give each image, transformed, with its target: boxes cxcywh as fractions of the transformed image.

    A target also holds `image_id`, `orig_size` (height, width of the file) and `size` (after the transforms), and
    `masks` where the annotations have them.

    Args:
        annotations: The boxes.
        images: Loads the image at a position, as 8-bit red, green and blue.
        transforms: From 8-bit sample to normalised sample.
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
        self._transforms = transforms

    @property
    def label_map(self) -> LabelMap:
        """Which category each label means."""
        return self.annotations.label_map

    @property
    def report(self) -> DatasetReport:
        """What was kept, skipped and changed while reading."""
        return self.annotations.report

    def coco_ground_truth(self) -> COCO:
        """Give pycocotools' view of the dataset: published boxes, crowds as ignored regions, no degenerate boxes."""
        return self.annotations.ground_truth()

    def summary(self) -> str:
        """Describe the dataset in a few lines: the report, boxes per class, and how large they are."""
        return self.annotations.summary()

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, index: int | SeededIndex) -> tuple[Float[Tensor, "3 height width"], Target]:
        """Load one sample; a `SeededIndex` fixes its augmentation and leaves the global generator as it was.

        Raises:
            IndexError: If there is no such sample.
            DatasetError: If the image file cannot be decoded, or its size is not the annotated one.
        """
        if isinstance(index, SeededIndex):
            # `torch.manual_seed` would also restart the GPU's generator, and dropout with it.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(index.seed)
                return self._load(index.position)
        return self._load(index)

    def untransformed(self, index: int) -> tuple[UInt8[Tensor, "3 height width"], Target]:
        """Give the 8-bit image as stored, with its target: what one draws."""
        position = range(len(self))[index]
        image, target = split_sample(self._sample(position))
        return image, self._identify(target, position)

    def _load(self, index: int) -> tuple[Tensor, Target]:
        position = range(len(self))[index]
        image, target = split_sample(self._transforms(self._sample(position)))
        return image, self._identify(target, position)

    def _sample(self, position: int) -> Sample:
        boxes, labels = self.annotations.of_image(position)
        masks = self.annotations.masks_of_image(position)
        return make_sample(
            self._images(position),
            torch.from_numpy(boxes),
            torch.from_numpy(labels),
            None if masks is None else torch.from_numpy(masks),
        )

    def _identify(self, target: Target, position: int) -> Target:
        target["image_id"] = self.annotations.image_ids[position]
        target["orig_size"] = torch.from_numpy(self.annotations.sizes[position].copy())
        return target


class Datasets(NamedTuple):
    """The two splits of a dataset; their labels mean the same."""

    train: DetectionDataset
    val: DetectionDataset


def build_datasets(config: AnyDataConfig, *, masks: bool = False) -> Datasets:
    """Read and check both splits; image files are looked for, but not decoded.

    Args:
        config: The dataset.
        masks: Whether targets have masks; boxes without one are then left out.

    Raises:
        DatasetError: With everything that is wrong with either split.
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
        val = _coco_dataset(config, "val", label_map, masks=masks)
    except DatasetError as error:
        problems.extend(error.problems)
    if train is None or val is None:
        raise dataset_error(problems)
    return Datasets(train, val)


def build_dataset(config: AnyDataConfig, split: Split, *, masks: bool = False) -> DetectionDataset:
    """Read and check one split; image files are looked for, but not decoded.

    Without a `label_map` in the config the labels of both splits follow from the training annotations, which are then
    read for either.

    Args:
        config: The dataset.
        split: Which part of it.
        masks: Whether targets have masks; boxes without one are then left out.

    Raises:
        DatasetError: With everything that is wrong with the split; also if there is no box to train on.
    """
    if isinstance(config, ShapesConfig):
        annotations, images = draw_shapes(config, split, masks=masks)
        return DetectionDataset(annotations, ImageArray(images), transforms=_transforms(config, split))
    label_map = config.label_map
    if label_map is None and split == "val":
        label_map = build_dataset(config, "train").label_map
    return _coco_dataset(config, split, label_map, masks=masks)


def _coco_dataset(config: DataConfig, split: Split, label_map: LabelMap | None, *, masks: bool) -> DetectionDataset:
    written = (
        (config.train_images, config.train_annotations)
        if split == "train"
        else (config.val_images, config.val_annotations)
    )
    try:
        folder, file = (expand_path(path) for path in written)
    except FileError as error:
        raise DatasetError(str(error)) from error
    annotations = read_coco(
        folder,
        file,
        label_map=label_map,
        ignore_unknown_categories=config.ignore_unknown_categories,
        masks=masks,
    )
    if split == "train" and not annotations.report.boxes:
        raise DatasetError(f"{annotations.report}: there is no box to train on")
    images = ImageFiles([folder / name for name in annotations.file_names], annotations.sizes)
    return DetectionDataset(annotations, images, transforms=_transforms(config, split))


def _transforms(config: AnyDataConfig, split: Split) -> SampleTransform:
    if split == "train":
        return train_transforms(config.augment, config.image_mean, config.image_std)
    return eval_transforms(config.eval_short_side, config.eval_max_size, config.image_mean, config.image_std)
