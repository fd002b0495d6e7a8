"""Detection datasets: COCO-format files and synthetic shapes, checked, augmented and batched."""

from deformdetr._files import expand_path
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._check import CheckReport, check
from deformdetr.data._coco import read_coco
from deformdetr.data._config import AnyDataConfig, AugmentConfig, DataConfig, LabelMap, ShapesConfig
from deformdetr.data._dataset import Datasets, DetectionDataset, build_dataset, build_datasets
from deformdetr.data._errors import DatasetError
from deformdetr.data._images import ImageArray, ImageFiles, load_image
from deformdetr.data._loader import build_loader, collate
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
from deformdetr.models import resized_size

__all__ = [
    "Annotations",
    "AnyDataConfig",
    "AugmentConfig",
    "CheckReport",
    "DataConfig",
    "DatasetError",
    "DatasetReport",
    "Datasets",
    "DetectionDataset",
    "ImageArray",
    "ImageFiles",
    "LabelMap",
    "RandomSizeCrop",
    "ResizeShortSide",
    "Sample",
    "SeededIndex",
    "SeededSampler",
    "ShapesConfig",
    "build_dataset",
    "build_datasets",
    "build_loader",
    "check",
    "collate",
    "draw_shapes",
    "eval_transforms",
    "expand_path",
    "load_image",
    "make_sample",
    "prepare_for_evaluation",
    "read_coco",
    "resized_size",
    "split_sample",
    "train_transforms",
    "write_shapes",
]
