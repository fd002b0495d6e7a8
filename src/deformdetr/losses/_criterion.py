"""The set loss: match predictions and targets, then judge classes and boxes of every layer."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from deformdetr._dtypes import at_least_float32
from deformdetr.boxes import cxcywh_to_xyxy
from deformdetr.losses._boxes import giou_loss
from deformdetr.losses._classification import ClassificationLoss, FocalClassification
from deformdetr.losses._denoising import count_noised, noised_pairs, only_paired
from deformdetr.losses._masks import check_masks, mask_losses
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import DenoisingPredictions, LayerPredictions, Predictions, Target

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "loss_ce": 2.0,
    "loss_bbox": 5.0,
    "loss_giou": 2.0,
    "loss_mask": 1.0,
    "loss_dice": 1.0,
}


class SetCriterion(nn.Module):
    """Judge a set of predictions by its cheapest matching with the targets, for every layer that predicts.

    Geometry and logits are judged in float32 at least, whatever the model's dtype or autocast.

    Args:
        matcher: Finds the pairs, anew for every layer.
        classification: Loss of the logits; `FocalClassification()` by default.
        weights: What `total` multiplies `loss_ce`, `loss_bbox` and `loss_giou` by, of whichever layer, and `loss_mask`
            and `loss_dice`; one that is not named is left out of it.

    Raises:
        ValueError: If `weights` names something else or a weight is negative.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021, appendix A.4; Carion et al., "End-to-End Object Detection with
        Transformers", ECCV 2020, section 3.1.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        classification: ClassificationLoss | None = None,
        weights: Mapping[str, float] = DEFAULT_WEIGHTS,
    ) -> None:
        super().__init__()
        for name, weight in weights.items():
            if name not in DEFAULT_WEIGHTS or weight < 0:
                raise ValueError(
                    f"weights must be non-negative and among {', '.join(DEFAULT_WEIGHTS)}, got {name!r}: {weight}"
                )
        self.matcher = matcher
        self.classification = FocalClassification() if classification is None else classification
        self.weights = dict(weights)

    def forward(self, outputs: Predictions, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        """Give all losses, unweighted, and what else is worth logging, detached.

        `loss_ce`, `loss_bbox` (L1 of cxcywh) and `loss_giou` are sums over pairs, divided by the number of target boxes
        per process (at least 1); `class_error` is the percentage of matched queries of the last layer whose best class
        is wrong, 100 where there are none; `cardinality_error` is the mean difference between the number of targets and
        that of queries whose best class is not the last: with a softmax over "no object" the count of detections, with
        sigmoids without a meaning, and kept because published logs have it.

        Names end in `_0`, `_1`, ... for `aux_outputs`, in `_enc` for `enc_outputs`, where every object has class 0, and
        in `_interm` for `interm_outputs`, where it has its own. `dn_outputs` are not matched: place i of every group is
        to find target i of its image; if they have negatives, every other place is to find nothing, padding too. Their
        names end in `_dn`, and in `_dn_0`, `_dn_1`, ...; they are divided by the number of places that are to find a
        target, per process (at least 1).

        If there are `pred_masks`, `loss_mask` and `loss_dice` judge those of the last layer's pairs, enlarged to the
        largest height and width among the targets' masks; `valid_ratios` say where these lie if the images are padded
        further.

        Args:
            outputs: Any model's of the family; images without targets are fine, as is a batch of them.
            targets: One per image.

        Raises:
            ValueError: If predictions and targets do not fit together, a label is not a class, or a number is not
                finite (values are checked in the matcher's one transfer to the host), or masks are predicted for a
                target without them.
            TypeError: If labels are not int64.
        """
        if "pred_masks" in outputs:
            check_masks(outputs["pred_masks"], targets)
        layers = _layers(outputs, targets)
        matches = self.matcher.match_layers(
            [layer.predictions for layer in layers],
            [layer.targets for layer in layers],
            names=[layer.name for layer in layers],
        )
        device = outputs["pred_logits"].device
        num_boxes = _per_process(sum(len(target["labels"]) for target in targets), device)
        counts = torch.tensor([float(len(target["labels"])) for target in targets]).to(device, non_blocking=True)
        losses: dict[str, Tensor] = {}
        all_pairs = _pairs(matches, targets, device)
        for layer, pairs in zip(layers, all_pairs, strict=True):
            of_layer = self._judge(layer, pairs, num_boxes)
            of_layer["cardinality_error"] = _cardinality_error(layer.predictions["pred_logits"], counts)
            losses |= {f"{name}{layer.suffix}": value for name, value in of_layer.items()}
        if "pred_masks" in outputs:
            ratios = outputs.get("valid_ratios")
            losses |= mask_losses(outputs["pred_masks"], targets, all_pairs[0], num_boxes, ratios)
        if "dn_outputs" in outputs:
            losses |= self._judge_noised(outputs["dn_outputs"], targets, device)
        return losses

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the losses that have a weight, whatever their suffix, each multiplied by it.

        Args:
            losses: What calling the criterion gave.
        """
        stems = {name: re.sub(r"(_dn)?(_\d+|_enc|_interm)?$", "", name) for name in losses}
        return {name: losses[name] * self.weights[stem] for name, stem in stems.items() if stem in self.weights}

    def total(self, losses: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Add up what `weighted` gives: the number to minimise."""
        return torch.stack(list(self.weighted(losses).values())).sum()

    def _judge(
        self, layer: "_Layer", pairs: Int64[Tensor, "3 pairs"], num_boxes: Float[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        logits, boxes = layer.predictions["pred_logits"], layer.predictions["pred_boxes"]
        image, query, target = pairs.unbind(0)
        labels = torch.cat([of_image["labels"] for of_image in layer.targets])[target]
        target_boxes = torch.cat([of_image["boxes"] for of_image in layer.targets])[target].to(boxes.dtype)
        matched_boxes = boxes[image, query]
        overlap = giou_loss(cxcywh_to_xyxy(matched_boxes), cxcywh_to_xyxy(target_boxes))
        losses = {
            "loss_ce": self.classification(logits, (image, query), labels, num_boxes),
            "loss_bbox": F.l1_loss(matched_boxes, target_boxes, reduction="sum") / num_boxes,
            "loss_giou": overlap.sum() / num_boxes,
        }
        if layer.is_last:
            losses["class_error"] = _class_error(logits[image, query], labels)
        return losses

    def _judge_noised(
        self, outputs: DenoisingPredictions, targets: Sequence[Target], device: torch.device
    ) -> dict[str, Float[Tensor, ""]]:
        num_noised = _per_process(count_noised(outputs, targets), device)
        pairs = noised_pairs(outputs, targets).to(device, non_blocking=True)
        layers: list[LayerPredictions] = [outputs, *outputs.get("aux_outputs", ())]
        if not outputs["has_negatives"]:
            layers, pairs = only_paired(layers, pairs)
        losses: dict[str, Tensor] = {}
        for index, predictions in enumerate(layers):
            suffix = f"_dn_{index - 1}" if index else "_dn"
            layer = _Layer("dn_outputs", suffix, False, _widen(predictions), targets)
            losses |= {f"{name}{suffix}": value for name, value in self._judge(layer, pairs, num_noised).items()}
        return losses


class _Layer(NamedTuple):
    name: str
    suffix: str
    is_last: bool
    predictions: LayerPredictions
    targets: Sequence[Target]


def _layers(outputs: Predictions, targets: Sequence[Target]) -> list[_Layer]:
    """List what is to be judged: the last decoder layer, the other ones, the encoder's proposals."""
    layers = [_Layer("last layer", "", True, _widen(outputs), targets)]
    for index, auxiliary in enumerate(outputs.get("aux_outputs", ())):
        layers.append(_Layer(f"aux_outputs[{index}]", f"_{index}", False, _widen(auxiliary), targets))
    if "interm_outputs" in outputs:
        layers.append(_Layer("interm_outputs", "_interm", False, _widen(outputs["interm_outputs"]), targets))
    if "enc_outputs" in outputs:
        objects: list[Target] = [
            {"boxes": target["boxes"], "labels": torch.zeros_like(target["labels"])} for target in targets
        ]
        layers.append(_Layer("enc_outputs", "_enc", False, _widen(outputs["enc_outputs"]), objects))
    return layers


def _widen(predictions: LayerPredictions) -> LayerPredictions:
    return {
        "pred_logits": at_least_float32(predictions["pred_logits"]),
        "pred_boxes": at_least_float32(predictions["pred_boxes"]),
    }


def _pairs(
    matches: Sequence[Sequence[tuple[Tensor, Tensor]]], targets: Sequence[Target], device: torch.device
) -> Sequence[Int64[Tensor, "3 _"]]:
    """Give, for every layer, the image, the query and the target (counted over the batch) of every matched pair."""
    starts = [0, *accumulate(len(target["labels"]) for target in targets)]
    layers = [
        torch.cat(
            [
                torch.stack([torch.full_like(query, image), query, target + starts[image]])
                for image, (query, target) in enumerate(layer)
            ],
            dim=1,
        )
        for layer in matches
    ]
    # One small transfer for all layers, which a GPU's queue need not wait for.
    together = torch.cat(layers, dim=1).to(device, non_blocking=True)
    return torch.split(together, [layer.shape[1] for layer in layers], dim=1)


def _per_process(number: int, device: torch.device) -> Float[Tensor, ""]:
    """Average a count over the processes, to at least 1."""
    count = torch.full((), float(number), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=1)


@torch.no_grad()
def _class_error(logits: Float[Tensor, "pairs classes"], labels: Int64[Tensor, " pairs"]) -> Float[Tensor, ""]:
    if not len(labels):
        return logits.new_full((), 100.0)
    return 100 - 100 * (logits.argmax(-1) == labels).to(logits.dtype).mean()


@torch.no_grad()
def _cardinality_error(
    logits: Float[Tensor, "batch queries classes"], counts: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    predicted = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
    return F.l1_loss(predicted.float(), counts)
