"""Losses of denoising queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import distributed
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from deformdetr.losses import SetCriterion, StepCounts
from deformdetr.matching import HungarianMatcher
from deformdetr.structures import Predictions, Target
from targets import random_targets

CLASSES = 3
CASES = pytest.mark.parametrize("counts", [(2, 0, 4), (1, 1, 1), (0, 0, 0)], ids=["some", "equal", "none"])


def layer(batch: int, queries: int, rng: torch.Generator) -> Any:
    return {
        "pred_logits": torch.randn(batch, queries, CLASSES, generator=rng).requires_grad_(),
        "pred_boxes": (torch.rand(batch, queries, 4, generator=rng) * 0.4 + 0.3).requires_grad_(),
    }


def predictions(counts: Sequence[int], groups: int, rng: torch.Generator, *, contrastive: bool) -> Predictions:
    queries = groups * max(counts) * (2 if contrastive else 1)
    denoising = {"num_groups": groups, "has_negatives": contrastive}
    batch = len(counts)
    denoising |= {**layer(batch, queries, rng), "aux_outputs": [layer(batch, queries, rng) for _ in range(2)]}
    return {**layer(batch, 6, rng), "interm_outputs": layer(batch, 6, rng), "dn_outputs": denoising}  # type: ignore[typeddict-item]


def independent_losses(denoising: Any, of_layer: Any, targets: Sequence[Target]) -> dict[str, float]:
    """The losses of one layer query by query, on torchvision's parts."""
    count = max(1, denoising["num_groups"] * sum(len(target["labels"]) for target in targets))
    places = of_layer["pred_logits"].shape[1] // denoising["num_groups"]
    sums = {"loss_ce": 0.0, "loss_bbox": 0.0, "loss_giou": 0.0}
    for image, target in enumerate(targets):
        for query in range(of_layer["pred_logits"].shape[1]):
            place = query % places
            is_positive = place < len(target["labels"])
            classes = torch.zeros(CLASSES)
            if is_positive:
                classes[target["labels"][place]] = 1
                pair = of_layer["pred_boxes"][image, query], target["boxes"][place]
                sums["loss_bbox"] += (pair[0] - pair[1]).abs().sum().item()
                corners = [box_convert(box[None], "cxcywh", "xyxy") for box in pair]
                sums["loss_giou"] += 1 - generalized_box_iou(*corners).item()
            if is_positive or denoising["has_negatives"]:
                sums["loss_ce"] += sigmoid_focal_loss(
                    of_layer["pred_logits"][image, query], classes, 0.25, 2.0, "sum"
                ).item()
    return {name: value / count for name, value in sums.items()}


@CASES
@pytest.mark.parametrize("contrastive", [False, True])
def test_losses_agree_with_a_loop_over_queries(
    counts: tuple[int, ...], contrastive: bool, rng: torch.Generator
) -> None:
    targets = random_targets(counts, CLASSES, rng)
    outputs: Any = predictions(counts, 3, rng, contrastive=contrastive)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    denoising = outputs["dn_outputs"]
    for suffix, of_layer in (
        ("_dn", denoising),
        ("_dn_0", denoising["aux_outputs"][0]),
        ("_dn_1", denoising["aux_outputs"][1]),
    ):
        for stem, expected in independent_losses(denoising, of_layer, targets).items():
            assert losses[stem + suffix].item() == pytest.approx(expected, rel=1e-4, abs=1e-6), stem + suffix
    assert {name for name in losses if "_dn" in name} == {
        f"loss_{stem}_dn{index}" for stem in ("ce", "bbox", "giou") for index in ("", "_0", "_1")
    }


def test_losses_of_matched_queries_do_not_depend_on_denoising_queries(rng: torch.Generator) -> None:
    targets = random_targets((2, 1), CLASSES, rng)
    outputs = predictions((2, 1), 3, rng, contrastive=True)
    together = SetCriterion(HungarianMatcher())(outputs, targets)
    del outputs["dn_outputs"]
    for name, value in SetCriterion(HungarianMatcher())(outputs, targets).items():
        assert torch.equal(together[name], value)


def test_selected_proposals_are_matched_with_their_classes(rng: torch.Generator) -> None:
    targets = random_targets((2, 1), CLASSES, rng)
    outputs = predictions((2, 1), 3, rng, contrastive=True)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    alone = SetCriterion(HungarianMatcher())(outputs["interm_outputs"], targets)
    for stem in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(losses[f"{stem}_interm"], alone[stem])


def test_every_loss_is_weighted_by_its_stem(rng: torch.Generator) -> None:
    criterion = SetCriterion(HungarianMatcher(), weights={"loss_bbox": 3.0})
    losses = criterion(predictions((2, 1), 3, rng, contrastive=True), random_targets((2, 1), CLASSES, rng))
    weighted = criterion.weighted(losses)
    assert set(weighted) == {f"loss_bbox{end}" for end in ("", "_interm", "_dn", "_dn_0", "_dn_1")}
    torch.testing.assert_close(weighted["loss_bbox_dn_1"], losses["loss_bbox_dn_1"] * 3)


@CASES
@pytest.mark.parametrize("contrastive", [False, True])
def test_every_prediction_gets_a_finite_gradient(
    counts: tuple[int, ...], contrastive: bool, rng: torch.Generator
) -> None:
    outputs: Any = predictions(counts, 3, rng, contrastive=contrastive)
    criterion = SetCriterion(HungarianMatcher())
    criterion.total(criterion(outputs, random_targets(counts, CLASSES, rng))).backward()
    for of_layer in (outputs["dn_outputs"], *outputs["dn_outputs"]["aux_outputs"]):
        for name in ("pred_logits", "pred_boxes"):
            assert of_layer[name].grad.isfinite().all()
            assert of_layer[name].grad.any() == (sum(counts) > 0)


def test_other_targets_than_those_of_the_model_raise(rng: torch.Generator) -> None:
    outputs = predictions((2, 1), 3, rng, contrastive=False)
    with pytest.raises(ValueError, match=r"6 denoising queries in 3 groups do not fit 5 targets"):
        SetCriterion(HungarianMatcher())(outputs, random_targets((2, 5), CLASSES, rng))


def _losses_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    losses = SetCriterion(HungarianMatcher())(*_of_process(rank))
    torch.save({name: value.detach() for name, value in losses.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def _of_process(rank: int) -> tuple[Predictions, list[Target]]:
    generator = torch.Generator().manual_seed(rank)
    counts, groups = ((0,), 7) if rank == 0 else ((4,), 3)
    return predictions(counts, groups, generator, contrastive=True), random_targets(counts, CLASSES, generator)


@pytest.mark.slow
def test_two_processes_divide_by_the_same_count(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_losses_in_process, args=(str(tmp_path),), nprocs=2)
    # The second alone divides by 3 groups of 4 targets, together they divide by (0 + 12) / 2.
    alone = SetCriterion(HungarianMatcher())(*_of_process(1))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0].keys() == found[1].keys()
    for name in ("loss_ce_dn", "loss_bbox_dn", "loss_giou_dn_1"):
        assert found[0][name] == 0
        torch.testing.assert_close(found[1][name], alone[name].detach() * 2)


@pytest.mark.parametrize("contrastive", [False, True])
def test_denoising_losses_are_divided_by_the_count_of_the_step(contrastive: bool, rng: torch.Generator) -> None:
    counts = (2, 0, 4)
    outputs, targets = predictions(counts, 3, rng, contrastive=contrastive), random_targets(counts, CLASSES, rng)
    criterion = SetCriterion(HungarianMatcher())
    alone = criterion(outputs, targets)
    of_step = criterion(outputs, targets, step=StepCounts(counts, denoising_queries=45))
    for name in (name for name in alone if name.startswith("loss") and "_dn" in name):
        torch.testing.assert_close(of_step[name], alone[name] * 18 / 45)
    with pytest.raises(ValueError, match=r"step\.denoising_queries is 0, but this batch alone has 18"):
        criterion(outputs, targets, step=StepCounts(counts))
