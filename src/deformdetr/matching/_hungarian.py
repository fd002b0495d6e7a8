"""One-to-one matching of predictions and targets at the lowest total cost."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import cxcywh_to_xyxy, generalized_box_iou
from deformdetr.matching._check import check_form, explain, values_are_sound
from deformdetr.matching._cost import ClassCost, FocalClassCost
from deformdetr.structures import LayerPredictions, Target

Match: TypeAlias = tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]


class HungarianMatcher(nn.Module):
    """Match every target with another query of its image at the lowest total cost.

    The cost of a pair is `cost_class * class_cost + cost_bbox * L1 + cost_giou * (-GIoU)`, boxes as fractions of the
    image. It has no parameters and gives no gradients.

    Args:
        cost_class: Weight of the class's cost.
        cost_bbox: Weight of the L1 distance of the boxes, cxcywh.
        cost_giou: Weight of the negative generalised IoU.
        class_cost: Cost of the class; `FocalClassCost()` by default.

    Raises:
        ValueError: If a weight is negative or all are 0.

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
            raise ValueError(f"cost_class, cost_bbox and cost_giou must not be negative nor all 0, got {weights}")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.class_cost = FocalClassCost() if class_cost is None else class_cost

    def forward(self, outputs: LayerPredictions, targets: Sequence[Target]) -> list[Match]:
        """Match the predictions of one layer with the targets.

        Args:
            outputs: Predictions; other keys than theirs are ignored.
            targets: One per image; an image may have none, or more than there are queries.

        Returns:
            For every image, indices of matched queries, ascending, and of their targets, on the CPU. There are as many
            pairs as queries or targets, whichever are fewer.

        Raises:
            ValueError: If predictions and targets do not fit together, a label is not a class, or a number is not
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
        """Match several layers' predictions, each on its own, with one transfer to the host for all of them.

        Args:
            layers: Predictions of one batch, of any numbers of queries.
            targets: The targets of each layer. Neighbouring layers of one shape that share one list are priced
                together.
            names: What messages call the layers; their numbers by default.

        Returns:
            For every layer what `forward` returns.

        Raises:
            ValueError: As `forward`, or if there are not as many lists of targets as layers.
            TypeError: As `forward`.
        """
        for predictions, of_layer in zip(layers, targets, strict=True):
            check_form(predictions, of_layer)
        if names is None:
            names = ["predictions" if len(layers) == 1 else f"layer {index}" for index in range(len(layers))]
        runs = _runs(layers, targets)
        blocks = _to_host(
            [
                self._cost_block([layers[index] for index in run], image, target)
                for run in runs
                for image, target in enumerate(targets[run[0]])
            ]
        )
        matches: list[list[Match]] = [[] for _ in layers]
        for run in runs:
            for image, target in enumerate(targets[run[0]]):
                for index, row in zip(run, next(blocks), strict=True):
                    if not row.isfinite().all():
                        raise ValueError(explain(image, names[index], layers[index], target))
                    queries = layers[index]["pred_logits"].shape[1]
                    matches[index].append(_assign(row[:-1].view(queries, len(target["labels"]))))
        return matches

    def _cost_block(
        self, layers: Sequence[LayerPredictions], image: int, target: Target
    ) -> Float[Tensor, "layers costs_and_check"]:
        """Price one image's queries for its targets; a last column is NaN where the numbers cannot be matched."""
        logits = at_least_float32(torch.stack([layer["pred_logits"][image] for layer in layers]))
        boxes = at_least_float32(torch.stack([layer["pred_boxes"][image] for layer in layers]))
        sound = values_are_sound(logits, boxes, target)
        target_boxes = target["boxes"].to(boxes.dtype).expand(len(layers), -1, -1)
        # A label that is not a class would stop a GPU for good; `sound` reports it.
        labels = target["labels"].clamp(0, logits.shape[-1] - 1)
        cost = (
            self.cost_class * self.class_cost(logits, labels)
            + self.cost_bbox * torch.cdist(boxes, target_boxes, p=1)
            - self.cost_giou * generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        )
        return torch.cat([cost.flatten(1), torch.where(sound, 0.0, torch.nan).to(cost.dtype).unsqueeze(1)], dim=1)

    def extra_repr(self) -> str:
        """Name the weights, since there are no parameters to show."""
        return (
            f"cost_class={self.cost_class}, cost_bbox={self.cost_bbox}, cost_giou={self.cost_giou}, "
            f"class_cost={self.class_cost}"
        )


def _runs(layers: Sequence[LayerPredictions], targets: Sequence[Sequence[Target]]) -> list[list[int]]:
    """Group neighbouring layers that can be stacked, by their numbers: one layer at a time needs more kernels."""
    keys = [
        (layer["pred_logits"].shape, layer["pred_logits"].dtype, layer["pred_boxes"].dtype, id(of_layer))
        for layer, of_layer in zip(layers, targets, strict=True)
    ]
    return [list(run) for _, run in groupby(range(len(layers)), keys.__getitem__)]


def _to_host(blocks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Copy tensors to the host at once."""
    if not blocks:
        return
    host = torch.cat([block.flatten() for block in blocks]).cpu()
    for block, values in zip(blocks, torch.split(host, [block.numel() for block in blocks]), strict=True):
        yield values.view(block.shape)


def _assign(cost: Float[Tensor, "queries targets"]) -> Match:
    # Imported here because it would double the time that `import deformdetr` adds to `import torch`.
    from scipy.optimize import linear_sum_assignment

    query, target = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(query), torch.from_numpy(target)
