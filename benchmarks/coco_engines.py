"""Compare COCO's metrics by pycocotools and by faster-coco-eval: the numbers of both, and the time that they take.

`python -m benchmarks.coco_engines` needs faster-coco-eval, which no extra installs, and prints the numbers in
`docs/evaluation.md`. Ground truth and detections are random, about as many per image as COCO's validation images have.
"""

import argparse
import contextlib
import io
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_CATEGORIES, _SIDE = 80, 600.0


def main(images: int, seed: int) -> None:
    """Print the differences and the times."""
    import faster_coco_eval

    truth, detections = draw(images, np.random.default_rng(seed))
    ours, ours_time = _evaluate(COCO, COCOeval, truth, detections)
    theirs, theirs_time = _evaluate(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, truth, detections)
    for name in ("precision", "recall", "scores"):
        one, other = np.asarray(ours.eval[name]), np.asarray(theirs.eval[name])
        found = f"{np.abs(one - other).max():.1e}, in {(one != other).sum():,} of {one.size:,} numbers"
        print(f"{name}: largest difference {found}")
    stats = np.abs(np.asarray(ours.stats)[:12] - np.asarray(theirs.stats)[:12])
    print(f"the twelve metrics: largest difference {stats.max():.1e}, in {(stats > 0).sum()}")
    print(f"pycocotools {version('pycocotools')}: {ours_time:.2f} s")
    print(f"faster-coco-eval {version('faster-coco-eval')}: {theirs_time:.2f} s")


def draw(count: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a random ground truth, and 100 detections per image, some of them near its objects."""
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(1, count + 1):
        objects = _boxes(int(rng.integers(1, 15)), rng)
        labels = rng.integers(1, _CATEGORIES + 1, len(objects))
        for box, label in zip(objects, labels, strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "iscrowd": 0}
            annotations.append({**row, "bbox": box.tolist(), "area": float(box[2] * box[3])})
        near = objects[rng.integers(0, len(objects), 60)] * rng.uniform(0.8, 1.2, (60, 4))
        found = np.concatenate([near, _boxes(40, rng)])
        named = np.concatenate([labels[rng.integers(0, len(labels), 60)], rng.integers(1, _CATEGORIES + 1, 40)])
        scores = rng.random(100)
        detections += [
            {"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
            for box, label, score in zip(found, named, scores, strict=True)
        ]
    truth = {
        "images": [{"id": image, "width": int(_SIDE), "height": int(_SIDE)} for image in range(1, count + 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, _CATEGORIES + 1)],
        "annotations": annotations,
    }
    return truth, detections


def _boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    sides = _SIDE * rng.uniform(0.02, 0.6, (count, 2))
    return np.concatenate([rng.random((count, 2)) * (_SIDE - sides), sides], axis=1)


def _evaluate(coco: Any, engine: Any, truth: dict[str, Any], detections: list[dict[str, Any]]) -> tuple[Any, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = coco()
        annotated.dataset = truth
        annotated.createIndex()
        found = annotated.loadRes([dict(each) for each in detections])
        started = time.process_time()
        evaluation = engine(annotated, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        seconds = time.process_time() - started
        evaluation.summarize()
    return evaluation, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.images, arguments.seed)
