"""Detection datasets in COCO format or of synthetic shapes: reading, converting, checking, augmentation, batching."""

from deformdetr._coco_types import LabelMap
from deformdetr.data._annotations import Annotations, DatasetReport
from deformdetr.data._check import CheckReport, FileReport, check, check_file, judge
from deformdetr.data._coco import read_coco
from deformdetr.data._config import (
    AnyDataConfig,
    AugmentConfig,
    ColorConfig,
    DataConfig,
    DecodeConfig,
    ShapesConfig,
    ShardsConfig,
    ZoomOutConfig,
)
from deformdetr.data._dataset import Datasets, DetectionDataset, build_dataset, build_datasets, collate
from deformdetr.data._errors import DatasetError
from deformdetr.data._find_images import FoundImages, find_images, image_suffixes
from deformdetr.data._foreign import ForeignDataset, write_documents
from deformdetr.data._headers import Headers, read_headers
from deformdetr.data._images import ImageFiles, ImageHeader, image_tensor, load_image, read_header
from deformdetr.data._panoptic import PanopticFiles, panoptic_truth, write_panoptic
from deformdetr.data._sampler import SeededIndex, SeededSampler
from deformdetr.data._shapes import SHAPES_STUFF, draw_shapes, write_shapes
from deformdetr.data._shard_index import index_shards
from deformdetr.data._split import SplitDocuments, split_coco
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
from deformdetr.data._voc import read_voc
from deformdetr.data._warnings import ObjectLimits, find_warnings
from deformdetr.data._write_shards import write_shards
from deformdetr.data._yolo import read_yolo

__all__ = [
    "SHAPES_STUFF",
    "Annotations",
    "AnyDataConfig",
    "AugmentConfig",
    "CheckReport",
    "ColorConfig",
    "DataConfig",
    "DatasetError",
    "DatasetReport",
    "Datasets",
    "DecodeConfig",
    "DetectionDataset",
    "FileReport",
    "ForeignDataset",
    "FoundImages",
    "Headers",
    "ImageFiles",
    "ImageHeader",
    "LabelMap",
    "ObjectLimits",
    "PanopticFiles",
    "RandomSizeCrop",
    "ResizeShortSide",
    "Sample",
    "SeededIndex",
    "SeededSampler",
    "ShapesConfig",
    "ShardsConfig",
    "SplitDocuments",
    "ZoomOutConfig",
    "build_dataset",
    "build_datasets",
    "check",
    "check_file",
    "collate",
    "draw_shapes",
    "eval_transforms",
    "find_images",
    "find_warnings",
    "image_suffixes",
    "image_tensor",
    "index_shards",
    "judge",
    "load_image",
    "make_sample",
    "panoptic_truth",
    "prepare_for_evaluation",
    "read_coco",
    "read_header",
    "read_headers",
    "read_voc",
    "read_yolo",
    "split_coco",
    "split_sample",
    "train_transforms",
    "write_documents",
    "write_panoptic",
    "write_shapes",
    "write_shards",
]
