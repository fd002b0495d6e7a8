"""Detection datasets in COCO format or of synthetic shapes: reading, checking, augmentation and batching."""

from deformdetr._coco_types import LabelMap
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._check import CheckReport, check
from deformdetr.data._coco import read_coco
from deformdetr.data._config import AnyDataConfig, AugmentConfig, ColorConfig, DataConfig, ShapesConfig, ZoomOutConfig
from deformdetr.data._dataset import Datasets, DetectionDataset, build_dataset, build_datasets, collate
from deformdetr.data._errors import DatasetError
from deformdetr.data._images import ImageFiles, load_image
from deformdetr.data._sampler import SeededIndex, SeededSampler
from deformdetr.data._shapes import draw_shapes, write_shapes
from deformdetr.data._transforms import (
    RandomSizeCrop,
    ResizeShortSide,
    Sample,
    eval_transforms,
    make_sample,
    prepare_for_evaluation,
    split_sample,
    train_transforms,
)

__all__ = [
    "Annotations",
    "AnyDataConfig",
    "AugmentConfig",
    "CheckReport",
    "ColorConfig",
    "DataConfig",
    "DatasetError",
    "DatasetReport",
    "Datasets",
    "DetectionDataset",
    "ImageFiles",
    "LabelMap",
    "RandomSizeCrop",
    "ResizeShortSide",
    "Sample",
    "SeededIndex",
    "SeededSampler",
    "ShapesConfig",
    "ZoomOutConfig",
    "build_dataset",
    "build_datasets",
    "check",
    "collate",
    "draw_shapes",
    "eval_transforms",
    "load_image",
    "make_sample",
    "prepare_for_evaluation",
    "read_coco",
    "split_sample",
    "train_transforms",
    "write_shapes",
]
