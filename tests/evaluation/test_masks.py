"""Average precision of masks, compared with pycocotools on files and with known values."""

import contextlib
import io
import json
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.data import LabelMap, ShapesConfig, build_dataset
from deformdetr.evaluation import CocoEvaluator, encode_masks
from deformdetr.structures import Detections

SIDE = 64


LABELS = LabelMap(names=("cat", "dog"), category_ids=(4, 20))


def disc(x: float, y: float, radius: float) -> Tensor:
    axis = torch.arange(SIDE) + 0.5
    return (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2


def box_of(mask: Tensor) -> list[float]:
    rows, columns = mask.nonzero(as_tuple=True)
    return [float(each) for each in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


def random_discs(rng: torch.Generator, count: int) -> list[Tensor]:
    places = torch.rand(count, 3, generator=rng)
    return [disc(8 + 48 * x, 8 + 48 * y, 5 + 15 * size) for x, y, size in places.tolist()]


def ground_truth(masks: dict[int, list[Tensor]], labels: dict[int, list[int]]) -> COCO:
    coco = COCO()
    annotations: list[dict[str, Any]] = []
    for image_id, of_image in masks.items():
        for mask, label in zip(of_image, labels[image_id], strict=True):
            left, top, right, bottom = box_of(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": LABELS.category_ids[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": dict(encode_masks(mask[None, None])[0]),
                }
            )
    coco.dataset = {
        "images": [{"id": number, "width": SIDE, "height": SIDE} for number in masks],
        "categories": [{"id": number, "name": LABELS.names[label]} for number, label in LABELS.labels().items()],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def found_in(masks: list[Tensor], labels: list[int], scores: list[float] | None = None) -> Detections:
    return {
        "boxes": torch.tensor([box_of(mask) for mask in masks]).view(-1, 4),
        "scores": torch.ones(len(masks)) if scores is None else torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, SIDE, SIDE, dtype=torch.bool),
    }


def random_case(rng: torch.Generator, images: int = 8) -> tuple[COCO, dict[int, Detections]]:
    masks = {number: random_discs(rng, 3) for number in range(10, 10 + images)}
    labels = {number: torch.randint(2, (3,), generator=rng).tolist() for number in masks}
    found = {}
    for number, truth in masks.items():
        guesses = [mask.roll(int(torch.randint(4, (), generator=rng)), 1) for mask in truth]
        scores = torch.rand(4, generator=rng).tolist()
        found[number] = found_in([*guesses, *random_discs(rng, 1)], [*labels[number], 0], scores)
    return ground_truth(masks, labels), found


def reference(truth: COCO, results: list[Any], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def test_metrics_of_boxes_and_masks_equal_those_of_pycocotools(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    evaluator = CocoEvaluator(truth, LABELS, masks=True)
    evaluator.update(list(found.values()), list(found))
    metrics = evaluator.compute()
    names = [name for name in metrics if name.startswith("A")]
    for numbers, kind in ((metrics, "bbox"), (metrics["segm"], "segm")):
        # As read from a file; with boxes beside the masks, pycocotools would sort detections by the boxes' areas.
        results = json.loads(json.dumps(evaluator.coco_results()))
        left_out = "bbox" if kind == "segm" else "segmentation"
        expected = reference(truth, [{k: v for k, v in each.items() if k != left_out} for each in results], kind)
        for name, value in zip(names, expected, strict=True):
            assert (numbers[name] if numbers[name] is not None else -1) == pytest.approx(value), (kind, name)
    assert metrics["segm"]["AP"] != metrics["AP"]
    present = [row["AP"] for row in metrics["segm"]["per_class"]]
    assert sum(present) / len(present) == pytest.approx(metrics["segm"]["AP"])
    json.dumps(metrics)


def test_wrong_masks_with_right_boxes_have_no_precision(rng: torch.Generator) -> None:
    ring = disc(32, 32, 20) & ~disc(32, 32, 17)
    truth = ground_truth({1: [disc(32, 32, 20)]}, {1: [0]})
    evaluator = CocoEvaluator(truth, LABELS, masks=True)
    evaluator.update([found_in([ring], [0])], [1])
    metrics = evaluator.compute()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["segm"]["AP"] == 0


def test_a_dataset_evaluated_against_itself_scores_one_in_masks() -> None:
    dataset = build_dataset(ShapesConfig(num_train=1, num_val=20), "val", masks=True)
    evaluator = CocoEvaluator(dataset.coco_ground_truth(), dataset.label_map, masks=True)
    for index in range(len(dataset)):
        image, target = dataset.untransformed(index)
        boxes = scale_boxes(cxcywh_to_xyxy(target["boxes"]), (image.shape[1], image.shape[2]))
        found: Detections = {
            "boxes": boxes,
            "scores": torch.ones(len(boxes)),
            "labels": target["labels"],
            "masks": target["masks"][:, None],
        }
        evaluator.update([found], [target["image_id"]])
    metrics = evaluator.compute()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["segm"]["AP"] == pytest.approx(1)


def test_tables_show_boxes_and_masks(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    evaluator = CocoEvaluator(truth, LABELS, masks=True)
    evaluator.update(list(found.values()), list(found))
    lines = evaluator.table().splitlines()
    assert [line for line in lines if not line.startswith((" Average", "("))] == ["boxes", "masks"]
    assert f"= {evaluator.compute()['segm']['AP']:.3f}" in lines[lines.index("masks") + 1]
    classes = evaluator.class_table().splitlines()
    assert [line.split()[0] for line in classes] == [
        "boxes",
        "category",
        "cat",
        "dog",
        "all",
        "masks",
        "category",
        "cat",
        "dog",
    ]
    plain = CocoEvaluator(truth, LABELS)
    plain.update(list(found.values()), list(found))
    assert "segm" not in plain.compute()
    assert "masks" not in plain.table() + plain.class_table()
    assert "segmentation" not in plain.coco_results()[0]


def test_states_of_several_processes_merge_with_their_masks(rng: torch.Generator) -> None:
    truth, found = random_case(rng)
    whole = CocoEvaluator(truth, LABELS, masks=True)
    whole.update(list(found.values()), list(found))
    first, second = (CocoEvaluator(truth, LABELS, masks=True) for _ in range(2))
    first.update(list(found.values())[:5], list(found)[:5])
    second.update(list(found.values())[4:], list(found)[4:])
    first.merge([second.state()])
    assert first.compute() == whole.compute()


def test_images_without_detections_lower_recall_only() -> None:
    masks = {1: [disc(20, 20, 9)], 2: [disc(40, 40, 9)]}
    evaluator = CocoEvaluator(ground_truth(masks, {1: [0], 2: [0]}), LABELS, masks=True)
    assert evaluator.compute()["segm"]["AP"] == 0
    evaluator.update([found_in(masks[1], [0]), found_in([], [])], [1, 2])
    assert evaluator.compute()["segm"]["AR100"] == pytest.approx(0.5)


def test_invalid_masks_are_refused() -> None:
    masks = {1: [disc(20, 20, 9)]}
    evaluator = CocoEvaluator(ground_truth(masks, {1: [0]}), LABELS, masks=True)
    good = found_in(masks[1], [0])
    for wrong, named in (
        (good["masks"].float(), r"torch\.float32 \(1, 1, 64, 64\)"),
        (good["masks"][:, :, :32], r"torch\.bool \(1, 1, 32, 64\)"),
        (good["masks"][:0], r"torch\.bool \(0, 1, 64, 64\)"),
    ):
        with pytest.raises(ValueError, match=r"image 1: masks must be boolean of shape \(1, 1, 64, 64\), got " + named):
            evaluator.update([{**good, "masks": wrong}], [1])
    del good["masks"]
    with pytest.raises(ValueError, match=r"image 1: masks must be .* got none"):
        evaluator.update([good], [1])


def test_a_ground_truth_without_masks_is_refused() -> None:
    truth = ground_truth({1: [disc(20, 20, 9)]}, {1: [0]})
    del truth.anns[1]["segmentation"]
    with pytest.raises(ValueError, match=r"1 annotations of the ground truth have no segmentation, the first being 1"):
        CocoEvaluator(truth, LABELS, masks=True)
    CocoEvaluator(truth, LABELS)
