"""One-to-one matching of queries and targets at the lowest total cost."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import cxcywh_to_xyxy, generalized_box_iou
from deformdetr.matching._check import are_values_valid, check_shapes, describe_invalid
from deformdetr.matching._cost import ClassCost, FocalClassCost
from deformdetr.structures import LayerPredictions, Target

Match: TypeAlias = tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]


class HungarianMatcher(nn.Module):
    """Assign every target to a different query of its image at the lowest total cost.

    The cost of a pair is `cost_class * class_cost + cost_bbox * L1 + cost_giou * (-GIoU)`, with boxes as fractions of
    the image. There are no parameters and no gradients.

    Args:
        cost_class: Weight of the classification cost.
        cost_bbox: Weight of the L1 distance of the boxes, cxcywh.
        cost_giou: Weight of the negative generalized IoU.
        class_cost: Classification cost; `FocalClassCost()` by default.

    Raises:
        ValueError: If a weight is negative or all are 0.

    Examples:
        >>> boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]])
        >>> outputs = {"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": boxes}
        >>> targets = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.6, 0.7, 0.2, 0.2]])}]
        >>> HungarianMatcher()(outputs, targets)  # Query 1 gets target 0.
        [(tensor([1]), tensor([0]))]

    References:
        Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, equation 1.
    """

    def __init__(
        self,
        *,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        class_cost: ClassCost | None = None,
    ) -> None:
        super().__init__()
        weights = (cost_class, cost_bbox, cost_giou)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"cost_class, cost_bbox and cost_giou must not be negative or all 0, got {weights}")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost = FocalClassCost() if class_cost is None else class_cost

    def forward(self, outputs: LayerPredictions, targets: Sequence[Target]) -> list[Match]:
        """Match the predictions of one layer with the targets.

        Args:
            outputs: Predictions with `pred_logits` and `pred_boxes`; other keys are ignored.
            targets: One per image; an image may have no objects, or more objects than queries.

        Returns:
            For every image, the indices of matched queries, ascending, and of their targets, on the CPU. The number of
            pairs is the smaller of the numbers of queries and targets.

        Raises:
            ValueError: If predictions and targets do not fit together, a label is not a class, or a value is not
                finite.
            TypeError: If labels are not int64.
        """
        return self.match_layers([outputs], [targets])[0]

    @torch.no_grad()
    def match_layers(
        self,
        layers: Sequence[LayerPredictions],
        targets: Sequence[Sequence[Target]],
        *,
        names: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        """Match the predictions of several layers separately, with a single transfer to the host.

        Args:
            layers: Predictions of one batch; the numbers of queries may differ.
            targets: The targets of each layer. Costs of consecutive layers are computed together if the layers have
                the same shape and share one list of targets.
            names: Names of the layers in error messages; their indices by default.

        Returns:
            The result of `forward` for every layer.

        Raises:
            ValueError: As in `forward`, or if the numbers of layers and lists of targets differ.
            TypeError: As in `forward`.
        """
        for predictions, layer_targets in zip(layers, targets, strict=True):
            check_shapes(predictions, layer_targets)
        if names is None:
            names = ["predictions" if len(layers) == 1 else f"layer {index}" for index in range(len(layers))]
        groups = _group_layers(layers, targets)
        blocks = _copy_to_host(
            [
                self._cost_block([layers[index] for index in group], image, target)
                for group in groups
                for image, target in enumerate(targets[group[0]])
            ]
        )
        matches: list[list[Match]] = [[] for _ in layers]
        for group in groups:
            for image, target in enumerate(targets[group[0]]):
                for index, row in zip(group, next(blocks), strict=True):
                    if not row.isfinite().all():
                        raise ValueError(describe_invalid(image, names[index], layers[index], target))
                    queries = layers[index]["pred_logits"].shape[1]
                    matches[index].append(_assign(row[:-1].view(queries, len(target["labels"]))))
        return matches

    def _cost_block(
        self, layers: Sequence[LayerPredictions], image: int, target: Target
    ) -> Float[Tensor, "layers costs_and_check"]:
        """Compute the costs of one image's queries and targets; the last column is NaN if values are invalid."""
        logits = at_least_float32(torch.stack([layer["pred_logits"][image] for layer in layers]))
        boxes = at_least_float32(torch.stack([layer["pred_boxes"][image] for layer in layers]))
        valid = are_values_valid(logits, boxes, target)
        target_boxes = target["boxes"].to(boxes.dtype).expand(len(layers), -1, -1)
        # An index out of range would abort the CUDA context; `valid` reports such labels.
        labels = target["labels"].clamp(0, logits.shape[-1] - 1)
        cost = (
            self.cost_class * self.class_cost(logits, labels)
            + self.cost_bbox * torch.cdist(boxes, target_boxes, p=1)
            - self.cost_giou * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        )
        return torch.cat([cost.flatten(1), torch.where(valid, 0.0, torch.nan).to(cost.dtype).unsqueeze(1)], dim=1)

    def extra_repr(self) -> str:
        """Return the weights for `print`."""
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}, "
            f"class_cost={self.class_cost}"
        )


def _group_layers(layers: Sequence[LayerPredictions], targets: Sequence[Sequence[Target]]) -> list[list[int]]:
    """Group the indices of consecutive layers that can be stacked, which saves kernel launches."""
    keys = [
        (layer["pred_logits"].shape, layer["pred_logits"].dtype, layer["pred_boxes"].dtype, id(layer_targets))
        for layer, layer_targets in zip(layers, targets, strict=True)
    ]
    return [list(group) for _, group in groupby(range(len(layers)), keys.__getitem__)]


def _copy_to_host(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Copy tensors to the host in a single transfer."""
    if not blocks:
        return
    host = torch.cat([block.flatten() for block in blocks]).cpu()
    for block, values in zip(blocks, torch.split(host, [block.numel() for block in blocks]), strict=True):
        yield values.view(block.shape)


def _assign(cost: Float[Tensor, "queries targets"]) -> Match:
    # Imported here because scipy would double the import time of this package.
    from scipy.optimize import linear_sum_assignment

    query, target = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(query), torch.from_numpy(target)
