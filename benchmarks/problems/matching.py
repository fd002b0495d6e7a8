"""Matching and set losses: ours, and the way in which the original implementation does both."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from benchmarks.agreement import TOLERANCES
from benchmarks.cases import CriterionCase, MatcherCase, SetCase
from benchmarks.problems.contender import Candidate, Contender, Problem
from benchmarks.problems.targets import draw_targets
from deformdetr.boxes import cxcywh_to_xyxy, generalized_box_iou
from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import LayerPredictions, Predictions, Target

BASELINE = "plain"
Matches: TypeAlias = list[list[tuple[Tensor, Tensor]]]
"""For every layer and image, the indices of matched queries and of their targets."""
MatchLayers: TypeAlias = Callable[[Sequence[LayerPredictions], Sequence[Sequence[Target]]], Matches]
Judge: TypeAlias = Callable[[Predictions, Sequence[Target]], Tensor]

_CLASS, _BBOX, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-8


def draw_predictions(case: SetCase, device: str, seed: int) -> tuple[list[LayerPredictions], list[Target]]:
    """Draw targets, and layers that have found each of them with one query, so that no two matchings cost the same."""
    rng = torch.Generator(device).manual_seed(seed)
    targets = draw_targets(case.targets, case.classes, rng)
    sizes = [case.queries] * case.layers + ([case.proposals] if case.proposals else [])
    layers = []
    for queries in sizes:
        logits = torch.randn(len(targets), queries, case.classes, generator=rng, device=device) - 4
        boxes = 0.1 + 0.4 * torch.rand(len(targets), queries, 4, generator=rng, device=device)
        for image, target in enumerate(targets):
            count = len(target["labels"])
            found = torch.randperm(queries, generator=rng, device=device)[:count]
            noise = 0.01 * torch.randn(count, 4, generator=rng, device=device)
            boxes[image, found] = (target["boxes"] + noise).clamp(0.01, 0.99)
            logits[image, found, target["labels"]] += 5
        layers.append(LayerPredictions(pred_logits=logits, pred_boxes=boxes))
    return layers, targets


def prepare_matcher(
    case: MatcherCase, device: str, seed: int, matchers: Sequence[tuple[str, MatchLayers]] | None = None
) -> Problem:
    """Draw predictions of all layers; what is compared is the cost of the matching that is found, in float64."""
    layers, targets = draw_predictions(case, device, seed)
    per_layer = _targets_per_layer(case, targets)
    double = [_double(layer) for layer in layers]

    def costs(match: MatchLayers) -> dict[str, Tensor]:
        return {"cost": _total_costs(match(layers, per_layer), double, per_layer)}

    @cache
    def expected() -> dict[str, Tensor]:
        return {"cost": _total_costs(match_plainly(double, per_layer), double, per_layer)}

    def build(match: MatchLayers) -> Contender:
        return Contender(call=lambda: match(layers, per_layer), outputs=lambda: costs(match), expected=expected)

    matchers = matchers or (("ours", HungarianMatcher().match_layers), ("plain", match_plainly))
    return Problem(
        candidates=tuple(Candidate(name, partial(build, match)) for name, match in matchers),
        baseline=BASELINE,
        tolerance=TOLERANCES["float32"],
        clock="wall",
    )


def prepare_criterion(
    case: CriterionCase, device: str, seed: int, judges: Sequence[tuple[str, Judge]] | None = None
) -> Problem:
    """Draw predictions of all layers; compared are the total of the losses and its gradients."""
    layers, targets = draw_predictions(case, device, seed)
    double = [_double(layer) for layer in layers]
    ours = SetCriterion(HungarianMatcher())

    def judge(outputs: Predictions, targets: Sequence[Target]) -> Tensor:
        return ours.total(ours(outputs, targets))

    def differentiate(judge: Judge, layers: Sequence[LayerPredictions]) -> dict[str, Tensor]:
        leaves = [tensor.detach().requires_grad_() for layer in layers for tensor in _tensors(layer)]
        tracked = [
            LayerPredictions(pred_logits=a, pred_boxes=b) for a, b in zip(leaves[::2], leaves[1::2], strict=True)
        ]
        loss = judge(_as_outputs(case, tracked), targets)
        gradients = torch.autograd.grad(loss, leaves)
        names = [f"grad_{part}_{index}" for index in range(len(layers)) for part in ("logits", "boxes")]
        return {"loss": loss.detach()} | dict(zip(names, gradients, strict=True))

    @cache
    def expected() -> dict[str, Tensor]:
        return differentiate(judge_plainly, double)

    def build(judge: Judge) -> Contender:
        return Contender(
            call=lambda: differentiate(judge, layers), outputs=lambda: differentiate(judge, layers), expected=expected
        )

    judges = judges or (("ours", judge), ("plain", judge_plainly))
    return Problem(
        candidates=tuple(Candidate(name, partial(build, judge)) for name, judge in judges),
        baseline=BASELINE,
        tolerance=TOLERANCES["float32"],
        clock="wall",
    )


@torch.no_grad()
def match_plainly(layers: Sequence[LayerPredictions], targets: Sequence[Sequence[Target]]) -> Matches:
    """Match layer by layer: every query is priced for the targets of all images, and each layer is sent to the host."""
    matches = []
    for layer, of_layer in zip(layers, targets, strict=True):
        batch, queries = layer["pred_logits"].shape[:2]
        cost = _costs(
            layer["pred_logits"].flatten(0, 1),
            layer["pred_boxes"].flatten(0, 1),
            torch.cat([target["labels"] for target in of_layer]),
            torch.cat([target["boxes"] for target in of_layer]).to(layer["pred_boxes"].dtype),
        )
        on_host = cost.view(batch, queries, -1).cpu()
        of_images = torch.split(on_host, [len(target["labels"]) for target in of_layer], dim=-1)
        assigned = [linear_sum_assignment(of_image[image]) for image, of_image in enumerate(of_images)]
        matches.append([(torch.as_tensor(query), torch.as_tensor(target)) for query, target in assigned])
    return matches


def judge_plainly(outputs: Predictions, targets: Sequence[Target]) -> Tensor:
    """Give the weighted sum of all losses, one layer after the other."""
    layers: list[tuple[LayerPredictions, Sequence[Target]]] = [
        (LayerPredictions(pred_logits=outputs["pred_logits"], pred_boxes=outputs["pred_boxes"]), targets)
    ]
    layers += [(layer, targets) for layer in outputs.get("aux_outputs", ())]
    if "enc_outputs" in outputs:
        layers.append((outputs["enc_outputs"], _without_classes(targets)))
    num_boxes = max(1, sum(len(target["labels"]) for target in targets))
    total = outputs["pred_logits"].new_zeros(())
    for layer, of_layer in layers:
        ((*pairs,),) = match_plainly([layer], [of_layer])
        total = total + _losses(layer, of_layer, pairs, num_boxes)
    return total


def _losses(
    layer: LayerPredictions, targets: Sequence[Target], pairs: Sequence[tuple[Tensor, Tensor]], num_boxes: int
) -> Tensor:
    logits, boxes = layer["pred_logits"], layer["pred_boxes"]
    image = torch.cat([torch.full_like(query, index) for index, (query, _) in enumerate(pairs)])
    query = torch.cat([query for query, _ in pairs])
    labels = torch.cat([target["labels"][index] for target, (_, index) in zip(targets, pairs, strict=True)])
    target_boxes = torch.cat([target["boxes"][index] for target, (_, index) in zip(targets, pairs, strict=True)])
    target_boxes = target_boxes.to(boxes.dtype)

    classes = torch.full(logits.shape[:2], logits.shape[2], dtype=torch.int64, device=logits.device)
    classes[image, query] = labels
    one_hot = F.one_hot(classes, logits.shape[2] + 1)[..., :-1].to(logits.dtype)
    probability = logits.sigmoid()
    wrong = probability * (1 - one_hot) + (1 - probability) * one_hot
    weight = _ALPHA * one_hot + (1 - _ALPHA) * (1 - one_hot)
    focal = weight * wrong**_GAMMA * F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")

    found = boxes[image, query]
    overlap = torch.diag(generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(target_boxes)))
    distance = F.l1_loss(found, target_boxes, reduction="sum")
    return (_CLASS * focal.sum() + _BBOX * distance + _GIOU * (1 - overlap).sum()) / num_boxes


def _costs(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Float[Tensor, "queries targets"]:
    probability = logits.sigmoid()
    negative = (1 - _ALPHA) * probability**_GAMMA * -(1 - probability + _EPS).log()
    positive = _ALPHA * (1 - probability) ** _GAMMA * -(probability + _EPS).log()
    by_class = positive[:, labels] - negative[:, labels]
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return _CLASS * by_class + _BBOX * torch.cdist(boxes, target_boxes, p=1) - _GIOU * overlap


def _total_costs(
    matches: Matches, layers: Sequence[LayerPredictions], targets: Sequence[Sequence[Target]]
) -> Float[Tensor, "layers images"]:
    rows = []
    for pairs, layer, of_layer in zip(matches, layers, targets, strict=True):
        row = []
        for image, ((query, index), target) in enumerate(zip(pairs, of_layer, strict=True)):
            cost = _costs(
                layer["pred_logits"][image], layer["pred_boxes"][image], target["labels"], target["boxes"].double()
            )
            row.append(cost.cpu()[query, index].sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _targets_per_layer(case: SetCase, targets: list[Target]) -> list[list[Target]]:
    return [targets] * case.layers + ([_without_classes(targets)] if case.proposals else [])


def _without_classes(targets: Sequence[Target]) -> list[Target]:
    """Give every object class 0, as the encoder's proposals are judged."""
    return [{"boxes": each["boxes"], "labels": torch.zeros_like(each["labels"])} for each in targets]


def _as_outputs(case: SetCase, layers: Sequence[LayerPredictions]) -> Predictions:
    *auxiliary, last = layers[: case.layers]
    outputs = Predictions(pred_logits=last["pred_logits"], pred_boxes=last["pred_boxes"], aux_outputs=list(auxiliary))
    if case.proposals:
        outputs["enc_outputs"] = layers[-1]
    return outputs


def _tensors(layer: LayerPredictions) -> tuple[Tensor, Tensor]:
    return layer["pred_logits"], layer["pred_boxes"]


def _double(layer: LayerPredictions) -> LayerPredictions:
    return LayerPredictions(pred_logits=layer["pred_logits"].double(), pred_boxes=layer["pred_boxes"].double())
