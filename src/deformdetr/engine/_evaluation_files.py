"""Files of an evaluation: detections in COCO's results format, and pictures."""

import json
from pathlib import Path
from typing import Any

import torch

from deformdetr._files import fitting_name, write_text
from deformdetr.data import DetectionDataset
from deformdetr.evaluation import CocoEvaluator, CocoMetrics
from deformdetr.structures import Detections
from deformdetr.visualize import draw_comparison, plot_confusion, plot_precision_recall, save_image

# Errors are counted at this threshold if no detection is right, so that there is no best one.
_DEFAULT_THRESHOLD = 0.5


def write_report(
    folder: Path, evaluator: CocoEvaluator, metrics: CocoMetrics, dataset: DetectionDataset, *, num_worst: int
) -> None:
    """Write detections and, if there is any object, pictures of an evaluation into a folder, which is created.

    Args:
        folder: The folder.
        evaluator: Has the detections.
        metrics: What it computed.
        dataset: The images.
        num_worst: Number of pictures of images with errors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "detections.json", json.dumps(evaluator.coco_results()) + "\n")
    pictures = folder / "precision_recall.png", folder / "confusion.png"
    for old in (*pictures, *folder.glob("worst/*.png")):
        old.unlink(missing_ok=True)
    curves = evaluator.curves()
    if not curves:
        return
    found = metrics.get("best_threshold")
    threshold = _DEFAULT_THRESHOLD if found is None else found
    about = f"IoU 0.5, scores of at least {threshold:.3f}"
    plot_precision_recall(curves, pictures[0], title="precision over recall, IoU 0.5")
    plot_confusion(
        evaluator.matches().confusion(threshold), dataset.label_map.names, pictures[1], title=f"objects, {about}"
    )
    _draw_worst(folder / "worst", evaluator, dataset, threshold, num_worst)


def _draw_worst(
    folder: Path, evaluator: CocoEvaluator, dataset: DetectionDataset, threshold: float, count: int
) -> None:
    positions: dict[Any, int] = {image_id: index for index, image_id in enumerate(dataset.annotations.image_ids)}
    with_errors = [(image, errors) for image, errors in evaluator.matches().errors(threshold).items() if errors.total]
    folder.mkdir(exist_ok=True)
    for rank, (image_id, errors) in enumerate(with_errors[:count], start=1):
        position = positions[image_id]
        image, target = dataset.untransformed(position)
        picture = draw_comparison(
            image,
            _detections(evaluator, image_id),
            {"boxes": target["boxes"], "labels": target["labels"]},
            dataset.label_map.names,
            score_threshold=threshold,
        )
        name = Path(dataset.annotations.file_names[position]).stem
        counts = f"{errors.missed}-missed_{errors.spurious}-spurious_{errors.confused}-confused"
        save_image(picture, folder / fitting_name(f"{rank:02}_{name}", f"_{counts}.png"))


def _detections(evaluator: CocoEvaluator, image_id: Any) -> Detections:
    record = evaluator.state().get(image_id)
    rows = torch.zeros(0, 6) if record is None else torch.from_numpy(record.rows).float()
    return {
        "boxes": torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], dim=1),
        "scores": rows[:, 4],
        "labels": rows[:, 5].long(),
    }
