"""COCO's average precision and recall, the threshold of scores with the highest F1, confusions, errors, and PQ."""

from deformdetr._coco_types import RunLengths, encode_masks
from deformdetr.evaluation._evaluator import CocoEvaluator, CocoResult, EvaluatorState, ImageRecord
from deformdetr.evaluation._matching import ImageErrors, Matches, OperatingPoint
from deformdetr.evaluation._metrics import ClassMetrics, CocoMetrics
from deformdetr.evaluation._panoptic import PanopticEvaluator, PanopticMetrics, PanopticNumbers

__all__ = [
    "ClassMetrics",
    "CocoEvaluator",
    "CocoMetrics",
    "CocoResult",
    "EvaluatorState",
    "ImageErrors",
    "ImageRecord",
    "Matches",
    "OperatingPoint",
    "PanopticEvaluator",
    "PanopticMetrics",
    "PanopticNumbers",
    "RunLengths",
    "encode_masks",
]
