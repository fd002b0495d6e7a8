"""Panoptic quality, with numbers computed by hand from the rules of the panoptic API."""

import pytest
import torch

from deformdetr.data import LabelMap
from deformdetr.evaluation import PanopticEvaluator

CAT, DOG, SKY = range(3)
LABEL_MAP = LabelMap.contiguous({1: "cat", 2: "dog", 5: "sky"})


def segmentation(row, labels, crowds=None):
    """Return an image of one row."""
    found = {"segment_map": torch.tensor([row]), "labels": torch.tensor(labels, dtype=torch.int64)}
    return found if crowds is None else {**found, "iscrowd": torch.tensor(crowds)}


def metrics_of(*pairs):
    evaluator = PanopticEvaluator(LABEL_MAP, stuff=[SKY])
    for prediction, truth in pairs:
        evaluator.update(prediction, truth)
    return evaluator.compute()


def test_a_perfect_prediction_has_a_quality_of_one():
    image = segmentation([1, 1, 2, 2, 3], [CAT, CAT, SKY])
    metrics = metrics_of((image, image))
    assert metrics["PQ"] == metrics["SQ"] == metrics["RQ"] == 1
    assert metrics["classes"] == 2
    assert metrics["things"] == metrics["stuff"] == {"PQ": 1, "SQ": 1, "RQ": 1, "classes": 1}
    assert list(metrics["by_class"]) == ["cat", "sky"]


def test_quality_is_that_of_segmentation_times_that_of_recognition():
    # One cat of IoU 3/4, one missed, one invented.
    truth = segmentation([1, 1, 1, 1, 2, 2, 0, 0], [CAT, CAT])
    found = segmentation([1, 1, 1, 0, 0, 2, 2, 2], [CAT, CAT])
    # Of the invented cat, 2 of 3 pixels lie on void, so that it does not count.
    cat = metrics_of((found, truth))["by_class"]["cat"]
    assert cat["SQ"] == pytest.approx(3 / 4)
    assert cat["RQ"] == pytest.approx(1 / (1 + 0.5))
    assert cat["PQ"] == pytest.approx(3 / 4 / 1.5)


def test_half_of_the_union_does_not_match_and_another_class_does_not_either():
    truth = segmentation([1, 1, 2, 2], [CAT, SKY])
    half = metrics_of((segmentation([1, 2, 2, 2], [CAT, SKY]), truth))["by_class"]
    assert half["cat"] == {"PQ": 0, "SQ": 0, "RQ": 0, "classes": 1}
    assert half["sky"]["PQ"] == pytest.approx(2 / 3)
    other = metrics_of((segmentation([1, 1, 2, 2], [DOG, SKY]), truth))
    assert [other["by_class"][name]["PQ"] for name in ("cat", "dog", "sky")] == [0, 0, 1]
    assert other["PQ"] == pytest.approx(1 / 3)
    assert other["things"]["classes"] == 2


def test_predicted_pixels_on_void_do_not_count_but_void_in_the_prediction_does():
    truth = segmentation([1, 1, 1, 0, 0, 0], [CAT])
    on_void = metrics_of((segmentation([1, 1, 1, 1, 1, 1], [CAT]), truth))
    assert on_void["PQ"] == 1
    unsure = metrics_of((segmentation([1, 1, 0, 0, 0, 0], [CAT]), truth))
    assert unsure["SQ"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("row", "false"), [([1, 1, 1, 1, 0, 0], 0), ([0, 0, 1, 1, 1, 1], 1), ([0, 1, 1, 1, 1, 0], 1)])
def test_predictions_mostly_on_a_crowd_of_their_class_or_on_void_are_ignored(row, false):
    truth = segmentation([1, 1, 1, 2, 2, 2], [CAT, SKY], [1, 0])
    found = segmentation(row, [CAT])
    by_class = metrics_of((found, truth))["by_class"]
    # The crowd is neither matched nor missed.
    assert ("cat" in by_class) == bool(false)
    # A crowd of another class protects nothing.
    assert "dog" in metrics_of((segmentation(row, [DOG]), truth))["by_class"]


def test_images_are_matched_apart_and_added():
    hit = segmentation([1, 1], [CAT])
    miss = segmentation([0, 0], [])
    metrics = metrics_of((hit, hit), (miss, hit), (miss, miss))
    assert metrics["RQ"] == pytest.approx(1 / 1.5)
    assert metrics["SQ"] == 1


def test_counts_of_processes_are_added():
    hit, miss = segmentation([1, 1], [CAT]), segmentation([0, 0], [])
    evaluators = [PanopticEvaluator(LABEL_MAP, stuff=[SKY]) for _ in range(2)]
    for evaluator, found in zip(evaluators, (hit, miss), strict=True):
        evaluator.update(found, hit)
    evaluators[0].merge([each.state() for each in evaluators])
    assert evaluators[0].compute() == metrics_of((hit, hit), (miss, hit))
    assert [line.split() for line in evaluators[0].table().splitlines()] == [
        ["PQ", "SQ", "RQ"],
        ["all", "0.667", "1.000", "0.667"],
        ["things", "0.667", "1.000", "0.667"],
        ["stuff", "-", "-", "-"],
        ["cat", "0.667", "1.000", "0.667"],
    ]


def test_nothing_at_all_has_no_quality():
    empty = segmentation([0, 0], [])
    assert metrics_of((empty, empty)) == {
        "PQ": None,
        "SQ": None,
        "RQ": None,
        "classes": 0,
        "things": {"PQ": None, "SQ": None, "RQ": None, "classes": 0},
        "stuff": {"PQ": None, "SQ": None, "RQ": None, "classes": 0},
        "by_class": {},
    }


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (segmentation([1, 1, 1], [CAT]), r"one size, got \(1, 3\) and \(1, 2\)"),
        (segmentation([1, 2], [CAT]), "segments from 0 to 1, the number of labels, got 1 to 2"),
        (segmentation([1, 1], [3]), r"labels of the prediction must lie between 0 and 2, got \[3\]"),
        (segmentation([1, 1], [CAT, DOG]), "predicted segment 2 has no pixels"),
    ],
)
def test_predictions_that_do_not_fit_raise(found, message):
    with pytest.raises(ValueError, match=message):
        metrics_of((found, segmentation([1, 1], [CAT])))
