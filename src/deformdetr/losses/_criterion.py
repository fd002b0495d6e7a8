"""The set loss: match predictions with targets, then compute class, box and mask losses of every layer."""

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
from deformdetr.losses._classification import AveragedClassification, ClassificationLoss, FocalClassification
from deformdetr.losses._denoising import denoising_pairs, select_paired
from deformdetr.losses._masks import check_masks, mask_losses
from deformdetr.losses._step import StepCounts
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
    """Compute the losses of set prediction: of every layer, matched with the targets at the lowest cost.

    Losses are computed in float32 or float64, also for models in half precision and under autocast.

    Args:
        matcher: Matches queries with targets, separately for every layer.
        classification: Loss of the logits; `FocalClassification()` by default.
        weights: Weights of `loss_ce`, `loss_bbox`, `loss_giou`, `loss_mask` and `loss_dice` in `weighted` and `total`,
            for all layers. Losses without a weight are left out there.

    Raises:
        ValueError: If `weights` has another name or a negative weight.

    Examples:
        >>> from deformdetr.matching import HungarianMatcher
        >>> criterion = SetCriterion(HungarianMatcher())
        >>> outputs = {"pred_logits": torch.zeros(1, 4, 3), "pred_boxes": torch.full((1, 4, 4), 0.5)}
        >>> targets = [{"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}]
        >>> losses = criterion(outputs, targets)
        >>> losses["loss_bbox"]
        tensor(0.4000)
        >>> f"{criterion.total(losses):.2f}"
        '6.31'

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

    def forward(
        self, outputs: Predictions, targets: Sequence[Target], *, step: StepCounts | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute all losses, unweighted, and detached statistics for logs.

        * `loss_ce`, `loss_bbox` (L1 of cxcywh) and `loss_giou` are sums over matched pairs, divided by the number of
          target boxes per process (at least 1).
        * `loss_mask` and `loss_dice`, if there are `pred_masks`, are those of the last layer's pairs. Masks are
          upsampled to the largest height and width of the targets' masks. `valid_ratios` tell where that area ends in
          images that are padded further.
        * `class_error` is the percentage of the last layer's matched queries whose best class is wrong, 100 if there
          are none.
        * `cardinality_error` is the mean absolute difference between the number of targets and the number of queries
          whose best class is not the last. With "no object" as the last class it counts detections. With sigmoids it
          has no meaning, and is kept because published logs have it.

        Names end in `_0`, `_1`, ... for `aux_outputs`, in `_enc` for `enc_outputs`, where every object has class 0, and
        in `_interm` for `interm_outputs`, where objects have their classes.

        `dn_outputs` are not matched: query i of every group reconstructs target i of its image. With negatives, all
        other denoising queries are background, padding included. Names end in `_dn` for the last layer and in `_dn_0`,
        `_dn_1`, ... for the others. Sums are divided by the number of denoising queries with a target, per process (at
        least 1).

        Args:
            outputs: Predictions of a model of the DETR family.
            targets: One per image; each may be empty, and so may all of them.
            step: Counts of all batches of an optimizer step, if it accumulates gradients. Losses are then divided by
                those of the step instead of those of this batch, so that they add up to the losses of one large batch.

        Raises:
            ValueError: If predictions and targets do not fit together, a label is not a class, a value is not finite,
                or masks are predicted for a target without masks. Values are checked in the matcher's one transfer to
                the host.
            TypeError: If labels are not int64.
        """
        if "pred_masks" in outputs:
            check_masks(outputs["pred_masks"], targets)
        layers = _list_layers(outputs, targets)
        matches = self.matcher.match_layers(
            [layer.predictions for layer in layers],
            [layer.targets for layer in layers],
            names=[layer.name for layer in layers],
        )
        device = outputs["pred_logits"].device
        batch = StepCounts(tuple(len(target["labels"]) for target in targets))
        num_boxes = _mean_over_processes((step or batch).num_boxes, device)
        counts = torch.tensor(batch.boxes_per_image, dtype=torch.float32).to(device, non_blocking=True)
        losses: dict[str, Tensor] = {}
        all_pairs = _flatten_matches(matches, targets, device)
        for layer, pairs in zip(layers, all_pairs, strict=True):
            share = self._share(batch, step, num_queries=layer.predictions["pred_logits"].shape[1])
            layer_losses = self._layer_losses(layer, pairs, num_boxes, share=share)
            layer_losses["cardinality_error"] = _cardinality_error(layer.predictions["pred_logits"], counts)
            losses |= {f"{name}{layer.suffix}": value for name, value in layer_losses.items()}
        if "pred_masks" in outputs:
            ratios = outputs.get("valid_ratios")
            losses |= mask_losses(outputs["pred_masks"], targets, all_pairs[0], num_boxes, ratios)
        if "dn_outputs" in outputs:
            losses |= self._denoising_losses(outputs["dn_outputs"], targets, step)
        return losses

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every loss that has a weight, multiplied by its weight.

        Args:
            losses: The result of `forward`.
        """
        stems = {name: re.sub(r"(_dn)?(_\d+|_enc|_interm)?$", "", name) for name in losses}
        return {name: losses[name] * self.weights[stem] for name, stem in stems.items() if stem in self.weights}

    def total(self, losses: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Sum the `weighted` losses: the value to minimize."""
        return torch.stack(list(self.weighted(losses).values())).sum()

    def _layer_losses(
        self, layer: "_Layer", pairs: Int64[Tensor, "3 pairs"], num_boxes: Float[Tensor, ""], *, share: float
    ) -> dict[str, Float[Tensor, ""]]:
        logits, boxes = layer.predictions["pred_logits"], layer.predictions["pred_boxes"]
        image, query, target_index = pairs.unbind(0)
        labels = torch.cat([target["labels"] for target in layer.targets])[target_index]
        target_boxes = torch.cat([target["boxes"] for target in layer.targets])[target_index].to(boxes.dtype)
        matched_boxes = boxes[image, query]
        giou_losses = giou_loss(cxcywh_to_xyxy(matched_boxes), cxcywh_to_xyxy(target_boxes))
        classes = self.classification(logits, (image, query), labels, num_boxes)
        losses = {
            "loss_ce": classes if share == 1 else classes * share,
            "loss_bbox": F.l1_loss(matched_boxes, target_boxes, reduction="sum") / num_boxes,
            "loss_giou": giou_losses.sum() / num_boxes,
        }
        if not layer.suffix:
            losses["class_error"] = _class_error(logits[image, query], labels)
        return losses

    def _share(self, batch: StepCounts, step: StepCounts | None, *, num_queries: int) -> float:
        """Return the share of a batch in the total weight of an averaged classification loss."""
        if step is None or not isinstance(self.classification, AveragedClassification):
            return 1.0
        weights = []
        for counts in (batch, step):
            matched = counts.num_matched(num_queries)
            unmatched = num_queries * len(counts.boxes_per_image) - matched
            weights.append(self.classification.total_weight(matched, unmatched))
        return weights[0] / weights[1]

    def _denoising_losses(
        self, outputs: DenoisingPredictions, targets: Sequence[Target], step: StepCounts | None
    ) -> dict[str, Float[Tensor, ""]]:
        device = outputs["pred_logits"].device
        pairs = denoising_pairs(outputs, targets)
        num_pairs = pairs.shape[1]
        of_step = num_pairs if step is None else step.denoising_queries
        if of_step < num_pairs:
            raise ValueError(f"step.denoising_queries is {of_step}, but this batch alone has {num_pairs}")
        num_boxes = _mean_over_processes(of_step, device)
        is_averaged = isinstance(self.classification, AveragedClassification)
        share = num_pairs / max(1, of_step) if is_averaged and step is not None else 1.0
        pairs = pairs.to(device, non_blocking=True)
        layers: list[LayerPredictions] = [outputs, *outputs.get("aux_outputs", ())]
        if not outputs["has_negatives"]:
            layers, pairs = select_paired(layers, pairs)
        losses: dict[str, Tensor] = {}
        for index, predictions in enumerate(layers):
            suffix = f"_dn_{index - 1}" if index else "_dn"
            layer = _Layer("dn_outputs", suffix, _in_float32(predictions), targets)
            of_layer = self._layer_losses(layer, pairs, num_boxes, share=share)
            losses |= {f"{name}{suffix}": value for name, value in of_layer.items()}
        return losses


class _Layer(NamedTuple):
    name: str
    """Name in error messages."""
    suffix: str
    """Ending of the names of its losses; empty for the last decoder layer."""
    predictions: LayerPredictions
    targets: Sequence[Target]


def _list_layers(outputs: Predictions, targets: Sequence[Target]) -> list[_Layer]:
    """List the predictions to match: of the last decoder layer, of the others, and the encoder's proposals."""
    layers = [_Layer("last layer", "", _in_float32(outputs), targets)]
    for index, auxiliary in enumerate(outputs.get("aux_outputs", ())):
        layers.append(_Layer(f"aux_outputs[{index}]", f"_{index}", _in_float32(auxiliary), targets))
    if "interm_outputs" in outputs:
        layers.append(_Layer("interm_outputs", "_interm", _in_float32(outputs["interm_outputs"]), targets))
    if "enc_outputs" in outputs:
        objects: list[Target] = [
            {"boxes": target["boxes"], "labels": torch.zeros_like(target["labels"])} for target in targets
        ]
        layers.append(_Layer("enc_outputs", "_enc", _in_float32(outputs["enc_outputs"]), objects))
    return layers


def _in_float32(predictions: LayerPredictions) -> LayerPredictions:
    return {
        "pred_logits": at_least_float32(predictions["pred_logits"]),
        "pred_boxes": at_least_float32(predictions["pred_boxes"]),
    }


def _flatten_matches(
    matches: Sequence[Sequence[tuple[Tensor, Tensor]]], targets: Sequence[Target], device: torch.device
) -> Sequence[Int64[Tensor, "3 _"]]:
    """Return (image, query, target) of every matched pair, for every layer; targets are numbered over the batch."""
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
    # One small asynchronous transfer for all layers.
    together = torch.cat(layers, dim=1).to(device, non_blocking=True)
    return torch.split(together, [layer.shape[1] for layer in layers], dim=1)


def _mean_over_processes(number: int, device: torch.device) -> Float[Tensor, ""]:
    """Average a count over the processes. The count of all is at least 1."""
    count = torch.full((), float(number), device=device)
    if not (distributed.is_available() and distributed.is_initialized()):
        return count.clamp(min=1)
    distributed.all_reduce(count)
    # DETR's code limits the mean instead, so that few targets weigh less than in one process with all images.
    return count.clamp(min=1) / distributed.get_world_size()


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
