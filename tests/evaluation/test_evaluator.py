import contextlib
import io
import json
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.data import LabelMap, ShapesConfig, build_dataset
from deformdetr.evaluation import CocoEvaluator, _evaluator
from deformdetr.structures import Detections

OVERALL = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
RECALL = ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")


LABELS = LabelMap(names=("cat", "dog", "fish"), category_ids=(4, 20, 7))


def ground_truth(rows: list[tuple[int, int, list[float]]], image_ids: list[int], first_id: int = 1) -> COCO:
    """Return a ground truth of rows (image id, category id, [left, top, width, height])."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "width": 300, "height": 300} for number in image_ids],
        "categories": [{"id": number, "name": LABELS.names[label]} for number, label in LABELS.labels().items()],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for number, (image, category, box) in enumerate(rows, start=first_id)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


ROWS = [(1, 4, [10.0, 10, 20, 20]), (1, 20, [50.0, 50, 60, 60]), (2, 20, [100.0, 100, 150, 150])]
PERFECT = [
    detections([[10, 10, 30, 30], [50, 50, 110, 110]], [0.9, 0.8], [0, 1]),
    detections([[100, 100, 250, 250]], [0.7], [1]),
]


def random_case(rng: torch.Generator, images: int = 12) -> tuple[COCO, dict[int, Detections]]:
    """Return random objects, and detections that sometimes match them."""
    rows: list[tuple[int, int, list[float]]] = []
    found: dict[int, Detections] = {}
    for image_id in range(100, 100 + images):
        count = int(torch.randint(0, 6, (), generator=rng))
        corner = torch.rand(count, 2, generator=rng) * 150
        size = 5 + torch.rand(count, 2, generator=rng) ** 2 * 140
        labels = torch.randint(0, 3, (count,), generator=rng)
        rows += [
            (image_id, LABELS.category_ids[int(label)], [*map(float, (*c, *s))])
            for label, c, s in zip(labels, corner, size, strict=True)
        ]
        noise = torch.randn(count, 4, generator=rng) * 4
        guesses = torch.cat([torch.cat([corner, corner + size], dim=1) + noise, torch.tensor([[0.0, 0, 40, 40]])])
        found[image_id] = {
            "boxes": guesses,
            "scores": torch.rand(count + 1, generator=rng),
            "labels": torch.cat([labels, torch.randint(0, 3, (1,), generator=rng)]),
        }
    return ground_truth(rows, list(found)), found


def test_metrics_equal_those_of_pycocotools(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    evaluator = CocoEvaluator(truth, LABELS)
    evaluator.update(list(found.values()), list(found))
    results = evaluator.coco_results()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    metrics = evaluator.compute()
    for name, expected in zip(OVERALL + RECALL, reference.stats, strict=True):
        assert (metrics[name] if metrics[name] is not None else -1) == pytest.approx(expected)
    assert evaluator.table().splitlines()[:12] == printed.getvalue().splitlines()[-12:]
    present = [row["AP"] for row in metrics["per_class"] if row["AP"] is not None]
    assert sum(present) / len(present) == pytest.approx(metrics["AP"])
    present = [row["AP50"] for row in metrics["per_class"] if row["AP50"] is not None]
    assert sum(present) / len(present) == pytest.approx(metrics["AP50"])


def test_more_detections_count_where_asked() -> None:
    # 300 objects beside each other, all of which are found.
    rows = [(1, 4, [float(8 * (number % 20)), float(8 * (number // 20)), 6.0, 6.0]) for number in range(300)]
    boxes = [[left, top, left + width, top + height] for _, _, (left, top, width, height) in rows]
    found = [detections(boxes, [0.9 - number / 1000 for number in range(300)], [0] * 300)]
    few, many = (CocoEvaluator(ground_truth(rows, [1]), LABELS, max_detections=limit) for limit in (100, 300))
    for evaluator in (few, many):
        evaluator.update(found, [1])
    assert few.compute()["AP"] == pytest.approx(34 / 101)
    assert few.compute()["AR100"] == pytest.approx(1 / 3)
    assert few.compute()["best_f1"] == pytest.approx(2 * 100 / 400)
    assert many.compute()["AP"] == pytest.approx(1)
    assert many.compute()["AR100"] == pytest.approx(1 / 3)
    assert many.compute()["per_class"][0]["AR"] == pytest.approx(1)
    assert many.compute()["best_f1"] == pytest.approx(1)
    assert [row["max_detections"] for row in (few.compute(), many.compute())] == [100, 300]
    assert sum("maxDets=300" in line for line in many.table().splitlines()) == 10
    with pytest.raises(ValueError, match="max_detections must be at least 100, got 99"):
        CocoEvaluator(ground_truth(rows, [1]), LABELS, max_detections=99)


@pytest.mark.parametrize("pairs", [1, 200])
def test_categories_that_are_evaluated_apart_give_the_same_numbers(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    truth, found = random_case(rng)
    apart, together = (CocoEvaluator(truth, LABELS) for _ in range(2))
    for evaluator in (apart, together):
        evaluator.update(list(found.values()), list(found))
    expected = together.compute()
    monkeypatch.setattr(_evaluator, "_MAX_PAIRS", pairs)
    evaluate = _evaluator.CocoEvaluator._evaluate_categories
    groups = []
    monkeypatch.setattr(
        _evaluator.CocoEvaluator,
        "_evaluate_categories",
        lambda self, kind, categories: groups.append(categories) or evaluate(self, kind, categories),
    )
    assert apart.compute() == expected
    assert apart.table() == together.table()
    assert groups == ([[4], [7], [20]] if pairs == 1 else [[4, 7, 20]])


def test_curves_are_those_of_categories_with_objects(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    evaluator = CocoEvaluator(truth, LABELS)
    evaluator.update(list(found.values()), list(found))
    by_name = {row["name"]: row for row in evaluator.compute()["per_class"] if row["AP"] is not None}
    for iou, key in ((0.5, "AP50"), (0.75, "AP75")):
        curves = evaluator.curves(iou=iou)
        assert [name for name, _ in curves] == list(by_name)
        for name, curve in curves:
            assert len(curve) == 101
            assert curve.mean() == pytest.approx(by_name[name][key])


def test_perfect_detections_score_one() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    metrics = evaluator.compute()
    assert all(metrics[name] == pytest.approx(1) for name in OVERALL + RECALL)


def test_labels_map_back_to_category_ids() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    assert [row["category_id"] for row in evaluator.coco_results()] == [4, 20, 20]
    assert evaluator.coco_results()[2]["bbox"] == [100, 100, 150, 150]


def test_a_class_without_objects_has_no_precision() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    by_name = {row["name"]: row["AP"] for row in evaluator.compute()["per_class"]}
    assert by_name == {"cat": pytest.approx(1), "dog": pytest.approx(1), "fish": None}
    assert "fish" not in evaluator.class_table()
    assert evaluator.class_table().splitlines()[1].split() == [
        "cat",
        "1.000",
        "1.000",
        "1.000",
        "1.000",
        "0.450",
        "1.000",
    ]


def test_sizes_without_objects_are_none_and_explained() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS[:1], [1, 2]), LABELS)
    evaluator.update(PERFECT[:1], [1])
    metrics = evaluator.compute()
    assert metrics["AP_small"] == pytest.approx(1)
    assert metrics["AP_large"] is None
    assert json.loads(json.dumps(metrics))["AP_large"] is None
    assert "(-1.000: the ground truth has no object of that size)" in evaluator.table()


def test_without_detections_the_score_is_zero() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    assert evaluator.compute()["AP"] == 0
    evaluator.update([detections([], [], [])], [1])
    assert evaluator.compute()["AP"] == 0
    assert evaluator.compute()["AR100"] == 0


def test_without_objects_there_is_no_score() -> None:
    evaluator = CocoEvaluator(ground_truth([], [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    metrics = evaluator.compute()
    assert all(metrics[name] is None for name in OVERALL + RECALL)


def test_images_without_objects_lower_precision_by_their_detections() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2, 3]), LABELS)
    evaluator.update([*PERFECT, detections([[0, 0, 50, 50]], [0.99], [1])], [1, 2, 3])
    assert evaluator.compute()["AP"] == pytest.approx((1 + 2 / 3) / 2, abs=0.01)


def test_merged_states_of_several_processes_give_the_same_metrics(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    whole = CocoEvaluator(truth, LABELS)
    whole.update(list(found.values()), list(found))
    # Both have the first image, as when a sampler fills its last batch.
    parts = [dict(list(found.items())[:7]), dict([*list(found.items())[7:], next(iter(found.items()))])]
    evaluators = [CocoEvaluator(truth, LABELS) for _ in parts]
    for evaluator, part in zip(evaluators, parts, strict=True):
        evaluator.update(list(part.values()), list(part))
    evaluators[0].compute()
    evaluators[0].merge([evaluator.state() for evaluator in evaluators])
    assert evaluators[0].compute() == whole.compute()


def test_an_image_given_twice_counts_once() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    evaluator.update(PERFECT, [1, 2])
    assert len(evaluator.coco_results()) == 3


def test_later_updates_change_the_metrics() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT[:1], [1])
    before = evaluator.compute()["AP"]
    evaluator.update(PERFECT[1:], [2])
    assert before is not None
    assert before < 1
    assert evaluator.compute()["AP"] == pytest.approx(1)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    evaluator.update(PERFECT, [1, 2])
    evaluator.compute()
    evaluator.table()
    evaluator.class_table()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("found", "image_id", "named"),
    [
        (PERFECT[0], 3, "image 3 is not in the ground truth of 2"),
        (detections([[0, 0, 1, float("nan")]], [0.5], [0]), 1, "image 1.*not finite"),
        (detections([[0, 0, 1, 1]], [float("inf")], [0]), 1, "image 1.*not finite"),
        (detections([[0, 0, 1, 1]], [0.5], [3]), 1, "image 1: label 3 is not one of the 3"),
        (detections([[0, 0, 1, 1]], [0.5], [-1]), 1, "label -1"),
    ],
)
def test_invalid_detections_are_refused(found: Any, image_id: int, named: str) -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    with pytest.raises(ValueError, match=named):
        evaluator.update([found], [image_id])


def test_unequal_numbers_of_images_and_unknown_merged_images_are_refused() -> None:
    evaluator = CocoEvaluator(ground_truth(ROWS, [1, 2]), LABELS)
    with pytest.raises(ValueError, match="shorter"):
        evaluator.update(PERFECT, [1])
    other = CocoEvaluator(ground_truth(ROWS, [1, 2, 3]), LABELS)
    other.update(PERFECT[:1], [3])
    with pytest.raises(ValueError, match="image 3"):
        evaluator.merge([other.state()])


def test_a_ground_truth_that_pycocotools_would_miscount_is_refused() -> None:
    with pytest.raises(ValueError, match="annotation id 0"):
        CocoEvaluator(ground_truth(ROWS, [1, 2], first_id=0), LABELS)


def test_a_dataset_evaluated_against_itself_scores_one() -> None:
    dataset = build_dataset(ShapesConfig(num_train=1, num_val=30), "val")
    evaluator = CocoEvaluator(dataset.coco_ground_truth(), dataset.label_map)
    for index in range(len(dataset)):
        image, target = dataset.untransformed(index)
        height, width = image.shape[1:]
        boxes = scale_boxes(cxcywh_to_xyxy(target["boxes"]), (height, width))
        found: Detections = {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": target["labels"]}
        evaluator.update([found], [target["image_id"]])
    metrics = evaluator.compute()
    assert metrics["AP"] == pytest.approx(1)
    assert [row["name"] for row in metrics["per_class"]] == list(dataset.label_map.names)


def test_images_may_have_ids_of_text(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    numbered = CocoEvaluator(truth, LABELS)
    numbered.update(list(found.values()), list(found))
    named = COCO()
    named.dataset = json.loads(json.dumps(truth.dataset))
    for image in named.dataset["images"]:
        image["id"] = f"img{image['id']}"
    for row in named.dataset["annotations"]:
        row["image_id"] = f"img{row['image_id']}"
    with contextlib.redirect_stdout(io.StringIO()):
        named.createIndex()
    evaluator = CocoEvaluator(named, LABELS)
    evaluator.update(list(found.values()), [f"img{number}" for number in found])
    assert evaluator.compute() == numbered.compute()
    assert {row["image_id"] for row in evaluator.coco_results()} == {f"img{number}" for number in found}
