from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed
from torchvision.ops import box_convert, generalized_box_iou
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from deformdetr.losses import FocalClassification, SetCriterion, SoftmaxClassification, StepCounts
from deformdetr.matching import HungarianMatcher, SoftmaxClassCost
from deformdetr.structures import LayerPredictions, Predictions, Target
from goldens import Golden, load_golden
from targets import golden_targets, random_targets

DEFORMABLE = ("single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage")
DETR = ("detr_r50", "detr_r50_dc5")


def layer(batch: int, queries: int, classes: int, rng: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Any:
    return {
        "pred_logits": torch.randn(batch, queries, classes, generator=rng, dtype=dtype).requires_grad_(),
        "pred_boxes": (torch.rand(batch, queries, 4, generator=rng, dtype=dtype) * 0.4 + 0.3).requires_grad_(),
    }


def everything(batch: int, rng: torch.Generator, *, dtype: torch.dtype = torch.float32) -> Predictions:
    return {
        **layer(batch, 6, 3, rng, dtype=dtype),
        "aux_outputs": [layer(batch, 6, 3, rng, dtype=dtype) for _ in range(2)],
        "enc_outputs": layer(batch, 9, 3, rng, dtype=dtype),
    }


def leaves(outputs: Predictions) -> list[Tensor]:
    layers: list[Any] = [outputs, *outputs["aux_outputs"], outputs["enc_outputs"]]
    return [of_layer[key] for of_layer in layers for key in ("pred_logits", "pred_boxes")]


def golden_layer(golden: Golden, prefix: str = "") -> LayerPredictions:
    return {
        "pred_logits": torch.from_numpy(golden.arrays[f"{prefix}pred_logits"]),
        "pred_boxes": torch.from_numpy(golden.arrays[f"{prefix}pred_boxes"]),
    }


def independent_losses(outputs: LayerPredictions, targets: Sequence[Target]) -> dict[str, float]:
    """The losses of one layer image by image, on torchvision's parts."""
    matches = HungarianMatcher()(outputs, targets)
    count = max(1, sum(len(target["labels"]) for target in targets))
    sums = {"loss_ce": 0.0, "loss_bbox": 0.0, "loss_giou": 0.0}
    for image, (target, (query, other)) in enumerate(zip(targets, matches, strict=True)):
        logits, boxes = outputs["pred_logits"][image], outputs["pred_boxes"][image]
        classes = torch.zeros_like(logits)
        for q, t in zip(query.tolist(), other.tolist(), strict=True):
            classes[q, int(target["labels"][t])] = 1
            pair = boxes[q : q + 1], target["boxes"][t : t + 1]
            sums["loss_bbox"] += (pair[0] - pair[1]).abs().sum().item()
            sums["loss_giou"] += 1 - generalized_box_iou(*(box_convert(box, "cxcywh", "xyxy") for box in pair)).item()
        sums["loss_ce"] += torchvision_focal_loss(logits, classes, 0.25, 2.0, "sum").item()
    return {name: value / count for name, value in sums.items()}


@pytest.mark.parametrize("name", DEFORMABLE + DETR)
def test_losses_of_whole_models_agree_with_the_golden(name: str) -> None:
    golden = load_golden(name)
    if name in DETR:
        matcher = HungarianMatcher(cost_class=1.0, class_cost=SoftmaxClassCost())
        criterion = SetCriterion(matcher, classification=SoftmaxClassification())
    else:
        criterion = SetCriterion(HungarianMatcher())
    outputs: Predictions = {**golden_layer(golden), "aux_outputs": [golden_layer(golden, "aux0_")]}  # type: ignore[typeddict-item]
    losses = criterion(outputs, golden_targets(name, golden.facts["targets_per_image"]))
    stems = ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error")
    assert set(losses) == {"class_error", *stems, *(f"{stem}_0" for stem in stems)}
    for key, value in losses.items():
        assert value.item() == pytest.approx(float(golden.arrays[f"loss/{key}"]), rel=1e-4, abs=1e-4), key


def test_box_losses_of_proposals_agree_with_the_golden() -> None:
    golden = load_golden("two_stage")
    proposals: LayerPredictions = {
        # The golden keeps channel 0 alone, which is the one that the matching of proposals reads.
        "pred_logits": torch.from_numpy(golden.arrays["enc_pred_logits_class0"]).unsqueeze(-1),
        "pred_boxes": torch.from_numpy(golden.arrays["enc_pred_boxes"]),
    }
    outputs: Predictions = {**golden_layer(golden), "enc_outputs": proposals}  # type: ignore[typeddict-item]
    losses = SetCriterion(HungarianMatcher())(outputs, golden_targets("two_stage", golden.facts["targets_per_image"]))
    for stem in ("loss_bbox", "loss_giou"):
        assert losses[f"{stem}_enc"].item() == pytest.approx(float(golden.arrays[f"loss/{stem}_enc"]), rel=1e-4)


@pytest.mark.parametrize("name", DEFORMABLE + DETR)
def test_the_total_of_a_golden_is_the_weighted_sum_of_its_losses(name: str) -> None:
    arrays = load_golden(name).arrays
    losses = {key.removeprefix("loss/"): torch.from_numpy(value) for key, value in arrays.items() if "loss/" in key}
    weights = {"loss_ce": 1.0 if name in DETR else 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    total = SetCriterion(HungarianMatcher(), weights=weights).total(losses)
    assert float(total) == pytest.approx(float(arrays["loss_total"]), rel=1e-6)


@pytest.mark.parametrize("counts", [(2, 0, 5), (9, 7, 8), (0, 0, 0)], ids=["some", "more than queries", "none"])
def test_losses_agree_with_a_loop_over_images(counts: tuple[int, ...], rng: torch.Generator) -> None:
    outputs, targets = everything(3, rng), random_targets(counts, 3, rng)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    objects: list[Target] = [{"boxes": t["boxes"], "labels": torch.zeros_like(t["labels"])} for t in targets]
    layers: list[tuple[str, LayerPredictions, Sequence[Target]]] = [
        ("", outputs, targets),
        ("_0", outputs["aux_outputs"][0], targets),
        ("_1", outputs["aux_outputs"][1], targets),
        ("_enc", outputs["enc_outputs"], objects),
    ]
    for suffix, of_layer, of_targets in layers:
        for stem, expected in independent_losses(of_layer, of_targets).items():
            assert losses[f"{stem}{suffix}"].item() == pytest.approx(expected, rel=1e-4, abs=1e-5), stem + suffix


@pytest.mark.parametrize("counts", [(2, 0), (9, 7), (0, 0)], ids=["some", "more than queries", "none"])
def test_every_prediction_gets_a_finite_gradient(counts: tuple[int, ...], rng: torch.Generator) -> None:
    outputs, targets = everything(2, rng), random_targets(counts, 3, rng)
    criterion = SetCriterion(HungarianMatcher())
    criterion.total(criterion(outputs, targets)).backward()
    for leaf in leaves(outputs):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert outputs["pred_logits"].grad is not None
    assert outputs["pred_logits"].grad.any()
    assert outputs["pred_boxes"].grad is not None
    assert outputs["pred_boxes"].grad.any() == (sum(counts) > 0)


def test_the_total_has_the_right_gradient(rng: torch.Generator) -> None:
    outputs, targets = layer(2, 3, 2, rng, dtype=torch.float64), random_targets([2, 1], 2, rng, torch.float64)
    criterion = SetCriterion(HungarianMatcher())

    def total(logits: Tensor, boxes: Tensor) -> Tensor:
        losses: Tensor = criterion.total(criterion({"pred_logits": logits, "pred_boxes": boxes}, targets))
        return losses

    assert torch.autograd.gradcheck(total, (outputs["pred_logits"], outputs["pred_boxes"]))


def test_extra_classes_of_proposals_are_trained_as_background(rng: torch.Generator) -> None:
    outputs, targets = everything(1, rng), random_targets([2], 3, rng)
    SetCriterion(HungarianMatcher())(outputs, targets)["loss_ce_enc"].backward()
    gradient = outputs["enc_outputs"]["pred_logits"].grad
    assert gradient is not None
    assert (gradient[..., 1:] > 0).all()
    assert (gradient[..., 0] < 0).sum() == 2


def test_class_error_counts_wrong_classes_of_matched_queries(rng: torch.Generator) -> None:
    outputs, targets = layer(2, 6, 3, rng), random_targets([3, 2], 3, rng)
    matches = HungarianMatcher()(outputs, targets)
    wrong = sum(
        int((outputs["pred_logits"][image, query].argmax(-1) != targets[image]["labels"][other]).sum())
        for image, (query, other) in enumerate(matches)
    )
    assert SetCriterion(HungarianMatcher())(outputs, targets)["class_error"].item() == pytest.approx(100 * wrong / 5)


def test_a_batch_without_targets_has_a_class_error_of_100(rng: torch.Generator) -> None:
    losses = SetCriterion(HungarianMatcher())(layer(2, 6, 3, rng), random_targets([0, 0], 3, rng))
    assert losses["class_error"].item() == 100
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0


def test_logged_numbers_are_detached(rng: torch.Generator) -> None:
    losses = SetCriterion(HungarianMatcher())(everything(2, rng), random_targets([3, 2], 3, rng))
    for name, value in losses.items():
        assert value.requires_grad == name.startswith("loss_"), name


def test_only_losses_with_a_weight_are_weighted(rng: torch.Generator) -> None:
    criterion = SetCriterion(HungarianMatcher(), weights={"loss_bbox": 3.0})
    losses = criterion(everything(2, rng), random_targets([3, 2], 3, rng))
    weighted = criterion.weighted(losses)
    assert set(weighted) == {"loss_bbox", "loss_bbox_0", "loss_bbox_1", "loss_bbox_enc"}
    torch.testing.assert_close(weighted["loss_bbox_enc"], losses["loss_bbox_enc"] * 3)
    torch.testing.assert_close(criterion.total(losses), torch.stack(list(weighted.values())).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(dtype: torch.dtype, rng: torch.Generator) -> None:
    outputs, targets = layer(2, 6, 3, rng), random_targets([3, 2], 3, rng)
    half: Any = {key: value.detach().to(dtype) for key, value in outputs.items()}
    rounded: Any = {key: value.float() for key, value in half.items()}
    criterion = SetCriterion(HungarianMatcher())
    found, expected = criterion(half, targets), criterion(rounded, targets)
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_autocast_does_not_change_the_losses(rng: torch.Generator) -> None:
    outputs, targets = everything(2, rng), random_targets([3, 2], 3, rng)
    for classification in (FocalClassification(), SoftmaxClassification()):
        criterion = SetCriterion(HungarianMatcher(), classification=classification)
        expected = criterion(outputs, targets)
        with torch.autocast("cpu", torch.bfloat16):
            found = criterion(outputs, targets)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_losses_of_float64_are_computed_in_float64(rng: torch.Generator) -> None:
    outputs, targets = everything(2, rng, dtype=torch.float64), random_targets([3, 2], 3, rng)
    losses = SetCriterion(HungarianMatcher())(outputs, targets)
    assert {value.dtype for name, value in losses.items() if name.startswith("loss_")} == {torch.float64}


def test_error_names_the_layer_with_values_that_are_not_finite(rng: torch.Generator) -> None:
    outputs, targets = everything(2, rng), random_targets([3, 2], 3, rng)
    with torch.no_grad():
        outputs["aux_outputs"][1]["pred_boxes"][0, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"pred_boxes \(aux_outputs\[1\]\) of image 0"):
        SetCriterion(HungarianMatcher())(outputs, targets)


def test_weights_of_unknown_losses_raise() -> None:
    with pytest.raises(ValueError, match="'loss_box': 5"):
        SetCriterion(HungarianMatcher(), weights={"loss_box": 5.0})
    with pytest.raises(ValueError, match="'loss_ce': -1"):
        SetCriterion(HungarianMatcher(), weights={"loss_ce": -1.0})


def test_box_losses_are_divided_by_the_mean_count_of_all_processes(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, targets = layer(2, 6, 3, rng), random_targets([3, 2], 3, rng)
    alone = SetCriterion(HungarianMatcher())(outputs, targets)
    # The other of two processes has 10 targets where this one has 5.
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(10))
    together = SetCriterion(HungarianMatcher())(outputs, targets)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(together[name], alone[name] * 5 / 7.5)


@pytest.mark.parametrize("total", [0, 1])
def test_losses_of_steps_with_fewer_targets_than_processes_equal_those_of_one_process(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, total: int
) -> None:
    outputs, targets = layer(4, 6, 3, rng), random_targets([total, 0, 0, 0], 3, rng)
    whole = SetCriterion(HungarianMatcher())(outputs, targets)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.fill_(total))
    parts = [
        SetCriterion(HungarianMatcher())({key: outputs[key][part] for key in outputs}, targets[part])  # type: ignore[misc,literal-required]
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name])


@pytest.mark.parametrize("softmax", [False, True])
def test_losses_of_batches_add_up_to_those_of_the_step(rng: torch.Generator, softmax: bool) -> None:
    counts = (3, 0, 1, 8)
    # With softmax, the last of three logits is for no object.
    targets = random_targets(counts, 2, rng, dtype=torch.float64)
    outputs = everything(4, rng, dtype=torch.float64)
    cost = SoftmaxClassCost() if softmax else None
    classification = SoftmaxClassification(no_object_weight=0.3) if softmax else None
    criterion = SetCriterion(HungarianMatcher(class_cost=cost), classification=classification)
    whole = criterion(outputs, targets)
    sums = dict.fromkeys(whole, 0.0)
    for part in (slice(0, 1), slice(1, 4)):
        batch: Any = {key: outputs[key][part] for key in ("pred_logits", "pred_boxes")}  # type: ignore[literal-required]
        batch["aux_outputs"] = [{key: each[key][part] for key in each} for each in outputs["aux_outputs"]]  # type: ignore[literal-required]
        batch["enc_outputs"] = {key: value[part] for key, value in outputs["enc_outputs"].items()}  # type: ignore[index]
        for name, value in criterion(batch, targets[part], step=StepCounts(counts)).items():
            sums[name] += value
    for name in (name for name in whole if name.startswith("loss")):
        torch.testing.assert_close(sums[name], whole[name])


def test_counts_of_a_step_are_averaged_over_processes(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = layer(2, 6, 3, rng), random_targets([3, 2], 3, rng)
    alone = SetCriterion(HungarianMatcher())(outputs, targets)
    # The step has 9 targets on this process and 11 on the other.
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.add_(11))
    together = SetCriterion(HungarianMatcher())(outputs, targets, step=StepCounts((3, 2, 4)))
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(together[name], alone[name] * 5 / 10)


def _losses_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    losses = SetCriterion(HungarianMatcher())(layer(1, 6, 3, generator), random_targets([4 * rank], 3, generator))
    torch.save({name: value.detach() for name, value in losses.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_divide_by_the_same_count(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_losses_in_process, args=(str(tmp_path),), nprocs=2)
    # Alone they divide by 1 and by 4, together by (0 + 4) / 2.
    for rank, ratio in enumerate((1 / 2, 4 / 2)):
        generator = torch.Generator().manual_seed(rank)
        alone = SetCriterion(HungarianMatcher())(layer(1, 6, 3, generator), random_targets([4 * rank], 3, generator))
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss_ce"], alone["loss_ce"].detach() * ratio)
