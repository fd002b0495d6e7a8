"""Compare COCO's metrics by pycocotools and by faster-coco-eval: the numbers of both, and the time that they take.

`python -m benchmarks.coco_engines` needs faster-coco-eval, which no extra installs, and prints the numbers in
`docs/evaluation.md`. Ground truth and detections are random, about as many per image as COCO's validation images have.

With --memory, each engine runs in a process of its own, `CocoEvaluator` too, and its memory is measured.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_CATEGORIES, _SIDE = 80, 600.0
_ENGINES = ("CocoEvaluator", "faster-coco-eval", "pycocotools")
_MEASURE = "import sys; from benchmarks.coco_engines import measure; measure(sys.argv[1], *map(int, sys.argv[2:]))"


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


def compare_memory(images: int, seed: int, engines: Sequence[str]) -> None:
    """Print a table of processor time and memory of each engine, in a process of its own."""
    print("| engine | images | processor seconds | inputs, MiB | peak, MiB | AP |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for engine in engines:
        subprocess.run([sys.executable, "-c", _MEASURE, engine, str(images), str(seed)], check=True)


def measure(engine: str, images: int, seed: int) -> None:
    """Print a row for one engine: from detections to the twelve metrics."""
    rng = np.random.default_rng(seed)
    if engine == "CocoEvaluator":
        evaluator = _filled_evaluator(images, rng)
        before, started = _peak(), time.process_time()
        precision = evaluator.compute()["AP"]
    else:
        truth, detections = draw(images, rng)
        before, started = _peak(), time.process_time()
        precision = _evaluate(*_classes(engine), truth, detections)[0].stats[0]
    seconds = time.process_time() - started
    print(f"| {engine} | {images:,} | {seconds:.1f} | {before:,.0f} | {_peak():,.0f} | {precision:.6f} |", flush=True)


def _classes(engine: str) -> tuple[Any, Any]:
    if engine == "pycocotools":
        return COCO, COCOeval
    import faster_coco_eval

    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _filled_evaluator(images: int, rng: np.random.Generator) -> Any:
    import torch

    from deformdetr.data import LabelMap
    from deformdetr.evaluation import CocoEvaluator

    label_map = LabelMap.contiguous({label: str(label) for label in range(1, _CATEGORIES + 1)})
    annotations: list[dict[str, Any]] = []
    found = {}
    for image in _images(images, rng):
        annotations += image.annotations(len(annotations) + 1)
        corners = np.concatenate([image.found[:, :2], image.found[:, :2] + image.found[:, 2:]], axis=1)
        arrays = {"boxes": corners, "scores": image.scores, "labels": image.named - 1}
        found[image.number] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    truth = COCO()
    truth.dataset = _document(images, annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    evaluator = CocoEvaluator(truth, label_map)
    evaluator.update(list(found.values()), list(found))
    return evaluator


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Image(NamedTuple):
    """Random objects and detections. Boxes are (left, top, width, height)."""

    number: int
    objects: np.ndarray
    labels: np.ndarray
    found: np.ndarray
    named: np.ndarray
    scores: np.ndarray

    def annotations(self, first: int) -> list[dict[str, Any]]:
        return [
            {
                "id": number,
                "image_id": self.number,
                "category_id": int(label),
                "iscrowd": 0,
                "bbox": box.tolist(),
                "area": float(box[2] * box[3]),
            }
            for number, (box, label) in enumerate(zip(self.objects, self.labels, strict=True), start=first)
        ]


def _images(count: int, rng: np.random.Generator) -> Iterator[_Image]:
    for image in range(1, count + 1):
        objects = _boxes(int(rng.integers(1, 15)), rng)
        labels = rng.integers(1, _CATEGORIES + 1, len(objects))
        near = objects[rng.integers(0, len(objects), 60)] * rng.uniform(0.8, 1.2, (60, 4))
        found = np.concatenate([near, _boxes(40, rng)])
        named = np.concatenate([labels[rng.integers(0, len(labels), 60)], rng.integers(1, _CATEGORIES + 1, 40)])
        yield _Image(image, objects, labels, found, named, rng.random(100))


def draw(count: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a random ground truth, and 100 detections per image, some of them near its objects."""
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in _images(count, rng):
        annotations += image.annotations(len(annotations) + 1)
        detections += [
            {"image_id": image.number, "category_id": int(label), "bbox": box.tolist(), "score": float(score)}
            for box, label, score in zip(image.found, image.named, image.scores, strict=True)
        ]
    return _document(count, annotations), detections


def _document(count: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": image, "width": int(_SIDE), "height": int(_SIDE)} for image in range(1, count + 1)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, _CATEGORIES + 1)],
        "annotations": annotations,
    }


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
    parser.add_argument("--memory", action="store_true", help="measure memory, with each engine in its own process")
    parser.add_argument("--engines", nargs="+", choices=_ENGINES, default=_ENGINES, help="of --memory")
    arguments = parser.parse_args()
    if arguments.memory:
        compare_memory(arguments.images, arguments.seed, arguments.engines)
    else:
        main(arguments.images, arguments.seed)
