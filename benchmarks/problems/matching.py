"""Matching and set losses: ours, and the plain way of the original implementation."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import CriterionCase, MatcherCase
from benchmarks.problems.problem import TOLERANCES, Contender, Problem
from deformdetr.boxes import cxcywh_to_xyxy, generalized_box_iou
from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import LayerPredictions, Predictions, Target

BASELINE = "plain"
Pairs: TypeAlias = list[tuple[Tensor, Tensor]]
"""Indices of matched queries and of their targets, by image."""
Match: TypeAlias = Callable[[Sequence[LayerPredictions], Sequence[Sequence[Target]]], list[Pairs]]
TotalLoss: TypeAlias = Callable[[Predictions, Sequence[Target]], Tensor]

_CLASS, _BBOX, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-8


def draw_targets(counts: Sequence[int], classes: int, rng: torch.Generator) -> list[Target]:
    """Draw boxes (cx, cy, w, h) inside the image and labels, on the generator's device."""
    targets: list[Target] = []
    for count in counts:
        sizes = 0.05 + 0.4 * torch.rand(count, 2, generator=rng, device=rng.device)
        centers = sizes / 2 + (1 - sizes) * torch.rand(count, 2, generator=rng, device=rng.device)
        labels = torch.randint(classes, (count,), generator=rng, device=rng.device)
        targets.append({"boxes": torch.cat([centers, sizes], dim=1), "labels": labels})
    return targets


def draw_predictions(case: MatcherCase, device: str, seed: int) -> tuple[list[LayerPredictions], list[Target]]:
    """Draw targets, and layers in which one query has found each of them, so that the best matching is unique."""
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


def prepare_matcher(case: MatcherCase, device: str, seed: int, matchers: Mapping[str, Match] | None = None) -> Problem:
    """Draw predictions of all layers; the matched queries are compared."""
    layers, targets = draw_predictions(case, device, seed)
    of_layers = [targets] * case.layers + ([_without_classes(targets)] if case.proposals else [])

    def outputs(match: Match, layers: Sequence[LayerPredictions]) -> dict[str, Tensor]:
        matches = enumerate(match(layers, of_layers))
        return {f"{n}, {i}": query[index.argsort()] for n, pairs in matches for i, (query, index) in enumerate(pairs)}

    expected = cache(partial(outputs, match_plainly, [_double(layer) for layer in layers]))
    matchers = matchers or {"ours": HungarianMatcher().match_layers, "plain": match_plainly}
    return Problem(
        candidates={
            name: partial(Contender, partial(match, layers, of_layers), partial(outputs, match, layers), expected)
            for name, match in matchers.items()
        },
        baseline=BASELINE,
        tolerance=TOLERANCES["float32"],
        clock="wall",
    )


def prepare_criterion(
    case: CriterionCase, device: str, seed: int, criteria: Mapping[str, TotalLoss] | None = None
) -> Problem:
    """Draw predictions of all layers; the total losses and their gradients are compared."""
    layers, targets = draw_predictions(case, device, seed)
    ours = SetCriterion(HungarianMatcher())

    def differentiate(total_loss: TotalLoss, layers: Sequence[LayerPredictions]) -> dict[str, Tensor]:
        tracked = [
            LayerPredictions(**{name: t.detach().requires_grad_() for name, t in each.items()}) for each in layers
        ]
        *auxiliary, last = tracked[: case.layers]
        outputs = Predictions(**last, aux_outputs=auxiliary)
        if case.proposals:
            outputs["enc_outputs"] = tracked[-1]
        loss = total_loss(outputs, targets)
        leaves = {f"grad_{name}_{index}": t for index, each in enumerate(tracked) for name, t in each.items()}
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"loss": loss.detach()} | dict(zip(leaves, gradients, strict=True))

    expected = cache(partial(differentiate, plain_loss, [_double(layer) for layer in layers]))
    criteria = criteria or {"ours": lambda outputs, targets: ours.total(ours(outputs, targets)), "plain": plain_loss}
    return Problem(
        candidates={
            name: partial(Contender, call := partial(differentiate, total_loss, layers), call, expected)
            for name, total_loss in criteria.items()
        },
        baseline=BASELINE,
        tolerance=TOLERANCES["float32"],
        clock="wall",
    )


@torch.no_grad()
def match_plainly(layers: Sequence[LayerPredictions], targets: Sequence[Sequence[Target]]) -> list[Pairs]:
    """Match layer by layer: compute the costs of all queries and all images' targets, and copy them to the CPU."""
    matches = []
    for layer, of_layer in zip(layers, targets, strict=True):
        batch, queries = layer["pred_logits"].shape[:2]
        cost = _costs(
            layer["pred_logits"].flatten(0, 1),
            layer["pred_boxes"].flatten(0, 1),
            torch.cat([target["labels"] for target in of_layer]),
            torch.cat([target["boxes"] for target in of_layer]).to(layer["pred_boxes"].dtype),
        )
        blocks = cost.view(batch, queries, -1).cpu().split([len(target["labels"]) for target in of_layer], dim=-1)
        assigned = [linear_sum_assignment(block[image]) for image, block in enumerate(blocks)]
        matches.append([(torch.as_tensor(query), torch.as_tensor(target)) for query, target in assigned])
    return matches


def plain_loss(outputs: Predictions, targets: Sequence[Target]) -> Tensor:
    """Return the weighted sum of all losses, computed layer by layer."""
    last = LayerPredictions(pred_logits=outputs["pred_logits"], pred_boxes=outputs["pred_boxes"])
    layers = [(layer, targets) for layer in (last, *outputs.get("aux_outputs", ()))]
    if "enc_outputs" in outputs:
        layers.append((outputs["enc_outputs"], _without_classes(targets)))
    num_boxes = max(1, sum(len(target["labels"]) for target in targets))
    total = last["pred_logits"].new_zeros(())
    for layer, of_layer in layers:
        (pairs,) = match_plainly([layer], [of_layer])
        total = total + _losses(layer, of_layer, pairs) / num_boxes
    return total


def _losses(layer: LayerPredictions, targets: Sequence[Target], pairs: Pairs) -> Tensor:
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
    return _CLASS * focal.sum() + _BBOX * distance + _GIOU * (1 - overlap).sum()


def _costs(logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Float[Tensor, "queries targets"]:
    probability = logits.sigmoid()
    negative = (1 - _ALPHA) * probability**_GAMMA * -(1 - probability + _EPS).log()
    positive = _ALPHA * (1 - probability) ** _GAMMA * -(probability + _EPS).log()
    by_class = positive[:, labels] - negative[:, labels]
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
    return _CLASS * by_class + _BBOX * torch.cdist(boxes, target_boxes, p=1) - _GIOU * overlap


def _without_classes(targets: Sequence[Target]) -> list[Target]:
    """Return the targets with class 0 for every object: the encoder's proposals are trained so."""
    return [{"boxes": each["boxes"], "labels": torch.zeros_like(each["labels"])} for each in targets]


def _double(layer: LayerPredictions) -> LayerPredictions:
    return LayerPredictions(pred_logits=layer["pred_logits"].double(), pred_boxes=layer["pred_boxes"].double())
