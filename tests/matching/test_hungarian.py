import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from deformdetr.matching import FocalClassCost, HungarianMatcher, SoftmaxClassCost
from deformdetr.structures import LayerPredictions, Target
from goldens import load_golden, unit
from targets import golden_targets, random_targets

Match = tuple[Tensor, Tensor]


def random_predictions(batch: int, queries: int, classes: int, rng: torch.Generator) -> LayerPredictions:
    boxes = torch.rand(batch, queries, 4, generator=rng) * 0.4 + 0.3
    return {"pred_logits": torch.randn(batch, queries, classes, generator=rng) * 2, "pred_boxes": boxes}


def independent_cost(predictions: LayerPredictions, target: Target, image: int) -> Tensor:
    """Costs 2, 5, 2, pair by pair, the overlap by torchvision."""
    logits, boxes = predictions["pred_logits"][image].double(), predictions["pred_boxes"][image].double()
    target_boxes = target["boxes"].double()
    giou = generalized_box_iou(*(box_convert(x, "cxcywh", "xyxy") for x in (boxes, target_boxes)))
    cost = torch.zeros_like(giou)
    for query, other in itertools.product(range(len(boxes)), range(len(target_boxes))):
        p = logits[query, target["labels"][other]].sigmoid()
        focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        cost[query, other] = 2 * focal + 5 * (boxes[query] - target_boxes[other]).abs().sum() - 2 * giou[query, other]
    return cost


def assert_matches(found: Sequence[Match], expected: Sequence[Match]) -> None:
    for pair, expected_pair in zip(found, expected, strict=True):
        for index, expected_index in zip(pair, expected_pair, strict=True):
            assert index.dtype == torch.int64
            assert index.tolist() == expected_index.tolist()


@pytest.mark.parametrize(("queries", "targets"), [(6, 3), (4, 4), (3, 5)], ids=["fewer", "as many", "more targets"])
def test_no_other_assignment_is_cheaper(queries: int, targets: int, rng: torch.Generator) -> None:
    predictions, (target,) = random_predictions(1, queries, 3, rng), random_targets([targets], 3, rng)
    ((query, other),) = HungarianMatcher()(predictions, [target])
    cost = independent_cost(predictions, target, 0)
    wide = cost if queries >= targets else cost.T
    cheapest = min(
        sum(float(wide[row, column]) for column, row in enumerate(rows))
        for rows in itertools.permutations(range(wide.shape[0]), wide.shape[1])
    )
    assert len(query) == min(queries, targets)
    assert query.tolist() == sorted(set(query.tolist()))
    assert len(set(other.tolist())) == len(other)
    assert float(cost[query, other].sum()) == pytest.approx(cheapest, abs=1e-5)


def test_matching_of_parts_agrees_with_the_golden() -> None:
    arrays = load_golden("parts").arrays
    predictions: LayerPredictions = {
        "pred_logits": unit("matcher.logits", (3, 20, 7)),
        "pred_boxes": unit("matcher.boxes", (3, 20, 4)) / math.sqrt(3) * 0.2 + 0.4,
    }
    found = HungarianMatcher()(predictions, golden_targets("matcher", [4, 0, 20], num_classes=7))
    expected = [
        (torch.from_numpy(arrays[f"matcher/{image}_query"]), torch.from_numpy(arrays[f"matcher/{image}_target"]))
        for image in range(3)
    ]
    assert_matches(found, expected)


@pytest.mark.parametrize(
    ("name", "matcher"),
    [
        (name, HungarianMatcher())
        for name in ("single_scale", "single_scale_dc5", "multi_scale", "box_refine", "two_stage")
    ]
    + [
        (name, HungarianMatcher(cost_class=1.0, class_cost=SoftmaxClassCost())) for name in ("detr_r50", "detr_r50_dc5")
    ],
)
def test_matching_of_whole_models_agrees_with_the_golden(name: str, matcher: HungarianMatcher) -> None:
    arrays, facts = load_golden(name)
    predictions: LayerPredictions = {
        "pred_logits": torch.from_numpy(arrays["pred_logits"]),
        "pred_boxes": torch.from_numpy(arrays["pred_boxes"]),
    }
    counts = facts["targets_per_image"]
    found = matcher(predictions, golden_targets(name, counts))
    expected = [
        (torch.from_numpy(arrays[f"match{image}_query"]), torch.from_numpy(arrays[f"match{image}_target"]))
        for image in range(len(counts))
    ]
    assert_matches(found, expected)


def test_layers_are_matched_together_as_separately(rng: torch.Generator) -> None:
    matcher, targets = HungarianMatcher(), random_targets([3, 0, 5], 4, rng)
    others = random_targets([3, 0, 5], 1, rng)
    layers = [random_predictions(3, queries, classes, rng) for queries, classes in ((6, 4), (6, 4), (4, 4), (9, 1))]
    lists = [targets, targets, targets, others]
    for found, layer, of_layer in zip(matcher.match_layers(layers, lists), layers, lists, strict=True):
        assert_matches(found, matcher(layer, of_layer))


def test_matching_of_an_image_does_not_depend_on_the_batch(rng: torch.Generator) -> None:
    predictions, targets = random_predictions(3, 7, 4, rng), random_targets([2, 9, 1], 4, rng)
    found = HungarianMatcher()(predictions, targets)
    for image in range(3):
        alone: LayerPredictions = {
            "pred_logits": predictions["pred_logits"][image : image + 1],
            "pred_boxes": predictions["pred_boxes"][image : image + 1],
        }
        assert_matches(found[image : image + 1], HungarianMatcher()(alone, targets[image : image + 1]))


def test_one_transfer_to_the_host_serves_all_layers_and_images(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = []
    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda values: (transfers.append(values.shape), to_host(values))[1])
    targets = random_targets([3, 0, 5], 4, rng)
    HungarianMatcher().match_layers([random_predictions(3, queries, 4, rng) for queries in (6, 6, 8)], [targets] * 3)
    assert len(transfers) == 1


def test_a_batch_without_targets_has_no_pairs(rng: torch.Generator) -> None:
    found = HungarianMatcher()(random_predictions(2, 5, 4, rng), random_targets([0, 0], 4, rng))
    assert_matches(found, [(torch.zeros(0), torch.zeros(0))] * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_of_half_precision_are_computed_in_float32(dtype: torch.dtype, rng: torch.Generator) -> None:
    predictions, targets = random_predictions(2, 8, 4, rng), random_targets([3, 4], 4, rng)
    half: LayerPredictions = {
        "pred_logits": predictions["pred_logits"].to(dtype),
        "pred_boxes": predictions["pred_boxes"].to(dtype),
    }
    rounded: LayerPredictions = {"pred_logits": half["pred_logits"].float(), "pred_boxes": half["pred_boxes"].float()}
    assert_matches(HungarianMatcher()(half, targets), HungarianMatcher()(rounded, targets))


@pytest.mark.parametrize("key", ["pred_logits", "pred_boxes"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("counts", [[2, 2], [0, 0]], ids=["with targets", "without targets"])
def test_error_names_predictions_that_are_not_finite(
    key: str, value: float, counts: list[int], rng: torch.Generator
) -> None:
    layers = [random_predictions(2, 5, 4, rng) for _ in range(2)]
    layers[1][key][1, 3, 2] = value  # type: ignore[literal-required]
    targets = random_targets(counts, 4, rng)
    with pytest.raises(ValueError, match=rf"{key} \(aux\) of image 1 .* 1 of 5 queries.* query 3: .*{value}"):
        HungarianMatcher().match_layers(layers, [targets, targets], names=["last", "aux"])


@pytest.mark.parametrize("label", [-1, 4, 900])
def test_error_names_a_label_out_of_range(label: int, rng: torch.Generator) -> None:
    targets = random_targets([1, 2], 4, rng)
    targets[1]["labels"][1] = label
    with pytest.raises(ValueError, match=rf"image 1 have labels \[{label}\], outside 0 to 3"):
        HungarianMatcher()(random_predictions(2, 5, 4, rng), targets)


@pytest.mark.parametrize("box", [[0.5, 0.5, -0.25, 0.1], [0.5, torch.nan, 0.25, 0.1]])
def test_error_names_an_invalid_target_box(box: list[float], rng: torch.Generator) -> None:
    targets = random_targets([1, 2], 4, rng)
    targets[0]["boxes"][0] = torch.tensor(box)
    with pytest.raises(ValueError, match=r"image 0 have boxes \(cxcywh\) \[\[0.5, "):
        HungarianMatcher()(random_predictions(2, 5, 4, rng), targets)


def test_costs_that_overflow_raise(rng: torch.Generator) -> None:
    predictions, targets = random_predictions(1, 5, 4, rng), random_targets([2], 4, rng)
    predictions["pred_boxes"][0, 0] = 3e38
    with pytest.raises(ValueError, match=r"costs .* of image 0 are not finite"):
        HungarianMatcher()(predictions, targets)


def test_a_target_without_area_is_matched(rng: torch.Generator) -> None:
    targets = random_targets([2], 4, rng)
    targets[0]["boxes"][:, 2:] = 0
    ((query, target),) = HungarianMatcher()(random_predictions(1, 5, 4, rng), targets)
    assert len(query) == len(target) == 2


def test_targets_of_other_shapes_raise(rng: torch.Generator) -> None:
    matcher, predictions = HungarianMatcher(), random_predictions(2, 5, 4, rng)
    good, other = random_targets([1, 2], 4, rng)
    with pytest.raises(ValueError, match="2 images, but targets for 1"):
        matcher(predictions, [good])
    with pytest.raises(ValueError, match=r"image 1 must have boxes \(n, 4\) .* got \(2, 4\) and \(1,\)"):
        matcher(predictions, [good, {"boxes": other["boxes"], "labels": other["labels"][:1]}])
    with pytest.raises(TypeError, match=r"image 1 .* torch.int32"):
        matcher(predictions, [good, {"boxes": other["boxes"], "labels": other["labels"].int()}])
    with pytest.raises(ValueError, match="image 1 are on meta"):
        matcher(predictions, [good, {"boxes": other["boxes"].to("meta"), "labels": other["labels"]}])
    with pytest.raises(ValueError, match=r"\(2, 5, 4\) and \(2, 4, 4\)"):
        matcher({"pred_logits": predictions["pred_logits"], "pred_boxes": predictions["pred_boxes"][:, 1:]}, [good] * 2)


def test_weights_that_are_negative_or_all_zero_raise() -> None:
    with pytest.raises(ValueError, match=r"\(0.0, 0.0, 0.0\)"):
        HungarianMatcher(cost_class=0.0, cost_bbox=0.0, cost_giou=0.0)
    with pytest.raises(ValueError, match=r"-1\.0"):
        HungarianMatcher(cost_bbox=-1.0)


def test_repr_shows_the_weights() -> None:
    matcher = HungarianMatcher(cost_bbox=4.0, class_cost=FocalClassCost(alpha=0.5))
    assert "cost_bbox=4.0" in repr(matcher)
    assert "alpha=0.5" in repr(matcher)


@pytest.mark.gpu
def test_matching_on_a_gpu_synchronizes_once(rng: torch.Generator) -> None:
    predictions, targets = random_predictions(3, 20, 4, rng), random_targets([3, 0, 5], 4, rng)
    expected = HungarianMatcher()(predictions, targets)
    on_gpu = [{key: value.cuda() for key, value in items.items()} for items in (predictions, *targets)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as synchronizations:
            found = HungarianMatcher()(on_gpu[0], on_gpu[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(synchronizations) == 1
    assert_matches(found, expected)
