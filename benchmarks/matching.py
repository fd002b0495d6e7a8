"""Matching and set losses: ours, and the plain way of the original implementation."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from benchmarks.cases import MatchingSizes
from benchmarks.problem import TOLERANCES, Contender, Outputs, Problem
from deformdetr.boxes import cxcywh_to_xyxy, generalized_box_iou
from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import LayerPredictions, Predictions, Target

BASELINE = "plain"
Pairs: TypeAlias = list[tuple[Tensor, Tensor]]
"""Indices of matched queries and of their targets, by image."""
Layers: TypeAlias = Sequence[LayerPredictions]

_CLASS, _BBOX, _GIOU = 2.0, 5.0, 2.0
_ALPHA, _GAMMA, _EPS = 0.25, 2.0, 1e-8
_NOISE = torch.tensor([0.01, 0.01, 0.005, 0.005])


def draw_targets(counts: Sequence[int], classes: int, rng: torch.Generator) -> list[Target]:
    """Draw boxes (cx, cy, w, h) inside the image and labels, on the generator's device."""
    targets: list[Target] = []
    for count in counts:
        sizes = 0.05 + 0.4 * torch.rand(count, 2, generator=rng, device=rng.device)
        centers = sizes / 2 + (1 - sizes) * torch.rand(count, 2, generator=rng, device=rng.device)
        labels = torch.randint(classes, (count,), generator=rng, device=rng.device)
        targets.append({"boxes": torch.cat([centers, sizes], dim=1), "labels": labels})
    return targets


def draw_predictions(sizes: MatchingSizes, device: str, seed: int) -> tuple[list[LayerPredictions], list[Target]]:
    """Draw targets, and layers in which one query has found each of them, so that the best matching is unique."""
    rng = torch.Generator(device).manual_seed(seed)
    targets = draw_targets(sizes.targets, sizes.classes, rng)
    layers = []
    for queries in [sizes.queries] * sizes.layers + ([sizes.proposals] if sizes.proposals else []):
        logits = torch.randn(len(targets), queries, sizes.classes, generator=rng, device=device) - 4
        boxes = 0.1 + 0.4 * torch.rand(len(targets), queries, 4, generator=rng, device=device)
        for image, target in enumerate(targets):
            count = len(target["labels"])
            found = torch.randperm(queries, generator=rng, device=device)[:count]
            # Differs in centers by more than in sizes: gradients jump where boxes share a size, a center or an edge.
            signs = torch.randint(2, (count, 4), generator=rng, device=device) * 2 - 1
            change = _NOISE.to(device) * (1 + torch.rand(count, 4, generator=rng, device=device))
            boxes[image, found] = target["boxes"] + signs * change
            logits[image, found, target["labels"]] += 5
        layers.append(LayerPredictions(pred_logits=logits, pred_boxes=boxes))
    return layers, targets


def prepare_matcher(
    sizes: MatchingSizes, device: str, seed: int, ours: Callable[..., list[Pairs]] | None = None
) -> Problem:
    """Draw predictions of all layers; the matched queries are compared."""
    layers, targets = draw_predictions(sizes, device, seed)
    of_layers = [targets] * sizes.layers + ([_without_classes(targets)] if sizes.proposals else [])

    def results(match: Callable[..., list[Pairs]], layers: Layers) -> Outputs:
        matches = enumerate(match(layers, of_layers))
        return {f"{n}, {i}": query[index.argsort()] for n, pairs in matches for i, (query, index) in enumerate(pairs)}

    matchers = {"ours": ours or HungarianMatcher().match_layers, BASELINE: match_plainly}
    return _problem(matchers, lambda match, layers: match(layers, of_layers), results, layers)


def prepare_criterion(
    sizes: MatchingSizes, device: str, seed: int, ours: Callable[..., Tensor] | None = None
) -> Problem:
    """Draw predictions of all layers; the total losses and their gradients are compared."""
    layers, targets = draw_predictions(sizes, device, seed)
    criterion = SetCriterion(HungarianMatcher())

    def differentiate(total_loss: Callable[..., Tensor], layers: Layers) -> Outputs:
        tracked = [_map(layer, lambda tensor: tensor.detach().requires_grad_()) for layer in layers]
        *auxiliary, last = tracked[: sizes.layers]
        outputs = Predictions(**last, aux_outputs=auxiliary)
        if sizes.proposals:
            outputs["enc_outputs"] = tracked[-1]
        loss = total_loss(outputs, targets)
        leaves = {f"grad_{name}_{index}": t for index, each in enumerate(tracked) for name, t in each.items()}
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"loss": loss.detach()} | dict(zip(leaves, gradients, strict=True))

    losses = {"ours": ours or (lambda *given: criterion.total(criterion(*given))), BASELINE: plain_loss}
    return _problem(losses, differentiate, differentiate, layers)


def _problem(
    functions: Mapping[str, Callable[..., Any]],
    call: Callable[..., object],
    results: Callable[..., Outputs],
    layers: Layers,
) -> Problem:
    """Time calls of functions, and compare their results with those of the baseline for the layers in float64."""
    right = cache(partial(results, functions[BASELINE], [_map(layer, Tensor.double) for layer in layers]))
    candidates = {
        name: partial(Contender, partial(call, function, layers), partial(results, function, layers), right)
        for name, function in functions.items()
    }
    return Problem(candidates, BASELINE, TOLERANCES["float32"], clock="wall")


@torch.no_grad()
def match_plainly(layers: Layers, targets: Sequence[Sequence[Target]]) -> list[Pairs]:
    """Match layer by layer: compute the costs of all queries and all images' targets, and copy them to the CPU."""
    matches = []
    for layer, of_layer in zip(layers, targets, strict=True):
        boxes = layer["pred_boxes"].flatten(0, 1)
        labels = torch.cat([target["labels"] for target in of_layer])
        target_boxes = torch.cat([target["boxes"] for target in of_layer]).to(boxes.dtype)
        probability = layer["pred_logits"].flatten(0, 1).sigmoid()
        negative = (1 - _ALPHA) * probability**_GAMMA * -(1 - probability + _EPS).log()
        positive = _ALPHA * (1 - probability) ** _GAMMA * -(probability + _EPS).log()
        by_class = positive[:, labels] - negative[:, labels]
        overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        cost = _CLASS * by_class + _BBOX * torch.cdist(boxes, target_boxes, p=1) - _GIOU * overlap
        counts = [len(target["labels"]) for target in of_layer]
        blocks = cost.view(*layer["pred_logits"].shape[:2], -1).cpu().split(counts, dim=-1)
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
    labels, target_boxes = (
        torch.cat([target[name][index] for target, (_, index) in zip(targets, pairs, strict=True)])
        for name in ("labels", "boxes")
    )
    target_boxes = target_boxes.to(boxes.dtype)

    classes = torch.full(logits.shape[:2], logits.shape[2], dtype=torch.int64, device=logits.device)
    classes[image, query] = labels
    one_hot = F.one_hot(classes, logits.shape[2] + 1)[..., :-1].to(logits.dtype)
    focal = sigmoid_focal_loss(logits, one_hot, alpha=_ALPHA, gamma=_GAMMA, reduction="sum")

    found = boxes[image, query]
    overlap = torch.diag(generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(target_boxes)))
    distance = F.l1_loss(found, target_boxes, reduction="sum")
    return _CLASS * focal + _BBOX * distance + _GIOU * (1 - overlap).sum()


def _without_classes(targets: Sequence[Target]) -> list[Target]:
    """Return the targets with class 0 for every object: the encoder's proposals are trained so."""
    return [{"boxes": each["boxes"], "labels": torch.zeros_like(each["labels"])} for each in targets]


def _map(layer: LayerPredictions, function: Callable[[Tensor], Tensor]) -> LayerPredictions:
    return LayerPredictions(pred_logits=function(layer["pred_logits"]), pred_boxes=function(layer["pred_boxes"]))
