"""Matches of detections and objects: thresholds, confusions and errors."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformdetr.evaluation import ImageErrors, Matches
from deformdetr.evaluation._matching import ImageObjects

BACKGROUND = 2


def objects(truth: list[Any], found: list[Any]) -> ImageObjects:
    """Return an image of objects (box, label, crowd) and detections (box, label, score)."""
    return ImageObjects(
        truth=np.array([box for box, _, _ in truth], dtype=np.float64).reshape(-1, 4),
        truth_labels=np.array([label for _, label, _ in truth], dtype=np.int64),
        is_crowd=np.array([crowd for _, _, crowd in truth], dtype=np.bool_),
        boxes=np.array([box for box, _, _ in found], dtype=np.float64).reshape(-1, 4),
        labels=np.array([label for _, label, _ in found], dtype=np.int64),
        scores=np.array([score for _, _, score in found], dtype=np.float64),
    )


A, B, C = [0, 0, 10, 10], [50, 50, 20, 20], [100, 100, 30, 30]


def matches(*images: ImageObjects, max_detections: int = 100) -> Matches:
    return Matches(enumerate(images, start=1), 2, max_detections=max_detections)


def test_the_threshold_of_the_highest_f1_lies_between_two_scores() -> None:
    image = objects([(A, 0, False), (B, 0, False)], [(A, 0, 0.9), (B, 0, 0.6), (C, 0, 0.4), (C, 1, 0.95)])
    overall, (first, second) = matches(image).operating_points()
    assert first == (pytest.approx(0.5), 1, 1, 1)
    assert second is None
    # The wrong detection of the second class counts in the sum of both.
    assert overall == (pytest.approx(0.5), pytest.approx(0.8), pytest.approx(2 / 3), 1)


def test_equal_scores_are_not_separated() -> None:
    image = objects([(A, 0, False)], [(A, 0, 0.7), (B, 0, 0.7), (C, 0, 0.7)])
    overall, _ = matches(image).operating_points()
    assert overall == (pytest.approx(0.35), pytest.approx(0.5), pytest.approx(1 / 3), 1)


def test_without_objects_or_right_detections_there_is_no_threshold() -> None:
    for image in (objects([], [(A, 0, 0.9)]), objects([(A, 0, False)], []), objects([(A, 0, False)], [(B, 0, 0.9)])):
        assert matches(image).operating_points() == (None, [None, None])
    assert matches().operating_points() == (None, [None, None])


def test_confusions_count_objects_by_row_and_detections_by_column() -> None:
    first = objects(
        [(A, 0, False), (B, 0, False), (C, 1, False)],
        # B is found as the other class, C is not found, and one detection has no object.
        [(A, 0, 0.9), (B, 1, 0.8), ([200, 200, 5, 5], 1, 0.7), (C, 1, 0.1)],
    )
    found = matches(first).confusion(0.5)
    expected = np.zeros((3, 3), dtype=np.int64)
    expected[0, 0] = expected[0, 1] = expected[BACKGROUND, 1] = expected[1, BACKGROUND] = 1
    np.testing.assert_array_equal(found, expected)
    assert matches(first).errors(0.5) == {1: ImageErrors(missed=1, spurious=1, confused=1)}
    assert matches(first).errors(0.05)[1] == ImageErrors(missed=0, spurious=1, confused=1)


def test_a_detection_of_its_own_class_precedes_one_of_another() -> None:
    image = objects([(A, 0, False)], [(A, 1, 0.9), ([0, 0, 10, 9], 0, 0.6)])
    found = matches(image).confusion(0.5)
    assert found[0, 0] == found[BACKGROUND, 1] == 1
    assert found.sum() == 2


def test_images_are_sorted_by_their_errors() -> None:
    good = objects([(A, 0, False)], [(A, 0, 0.9)])
    bad = objects([(A, 0, False), (B, 1, False)], [(C, 0, 0.9)])
    errors = matches(good, bad).errors(0.5)
    assert list(errors) == [2, 1]
    assert [each.total for each in errors.values()] == [3, 0]


def test_detections_in_crowds_do_not_count() -> None:
    image = objects([([0, 0, 100, 100], 0, True), (C, 0, False)], [([10, 10, 20, 20], 0, 0.9), (C, 0, 0.8)])
    overall, _ = matches(image).operating_points()
    assert (overall.f1, overall.precision) == (1, 1)
    assert matches(image).errors(0.5)[1].total == 0
    assert matches(image).confusion(0.5).sum() == 1


def test_only_the_best_detections_of_a_class_count() -> None:
    image = objects([(A, 0, False), (B, 0, False)], [(A, 0, 0.5), (B, 0, 0.9), (C, 1, 0.1)])
    assert matches(image, max_detections=1).operating_points()[1][0].recall == 0.5


def random_images(seed: int) -> tuple[list[ImageObjects], COCO, list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in range(1, 31):
        truth, found = [], []
        for _ in range(rng.integers(0, 8)):
            box = [*rng.uniform(0, 60, 2).round(), *rng.uniform(5, 50, 2).round()]
            truth.append((box, int(rng.integers(2)), bool(rng.random() < 0.15)))
            for _ in range(rng.integers(0, 3)):
                moved = (np.array(box) + rng.normal(0, 4, 4).round()).clip(1)
                found.append((list(moved), int(rng.integers(2)), float(rng.random())))
        images.append(objects(truth, found))
        for box, label, crowd in truth:
            row = {"image_id": image_id, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
            annotations.append(row | {"id": len(annotations) + 1, "iscrowd": int(crowd)})
        results += [
            {"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score} for box, label, score in found
        ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number, "width": 200, "height": 200} for number in range(1, 31)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }
    coco.createIndex()
    return images, coco, results


def test_matches_are_those_of_pycocotools(seed: int) -> None:
    images, coco, results = random_images(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCOeval(coco, coco.loadRes(results), "bbox")
        reference.params.areaRng, reference.params.areaRngLbl = [[0, 1e10]], ["all"]
        reference.params.iouThrs = np.array([0.5])
        reference.evaluate()
    expected = {1: [], 2: []}
    for each in filter(None, reference.evalImgs):
        for score, match, ignored in zip(each["dtScores"], each["dtMatches"][0], each["dtIgnore"][0], strict=True):
            if not ignored:
                expected[each["category_id"]].append((score, match > 0))
    found = matches(*images)
    for label in (0, 1):
        listed = [
            (float(score), object_of >= 0)
            for image in found._images.values()
            for score, object_of, of_label in zip(
                image.objects.scores, image.object_of, image.objects.labels, strict=True
            )
            if of_label == label and object_of != -2
        ]
        assert sorted(listed) == sorted(expected[label + 1])


def test_the_threshold_gives_the_f1_that_it_promises(seed: int) -> None:
    images, _, _ = random_images(seed)
    overall, _ = matches(*images).operating_points()
    assert overall is not None

    def f1(threshold: float) -> float:
        kept = [
            each._replace(
                boxes=each.boxes[each.scores >= threshold],
                labels=each.labels[each.scores >= threshold],
                scores=each.scores[each.scores >= threshold],
            )
            for each in images
        ]
        found = list(matches(*kept)._images.values())
        right = sum(int((image.object_of >= 0).sum()) for image in found)
        counted = sum(int((image.object_of != -2).sum()) for image in found)
        truth = sum(int((~image.objects.is_crowd).sum()) for image in found)
        return 2 * right / (counted + truth)

    assert f1(overall.threshold) == pytest.approx(overall.f1)
    assert all(f1(threshold) <= overall.f1 + 1e-12 for threshold in np.linspace(0, 1, 50))
