"""Evaluation of models and of finished runs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deformdetr._files import check_folder, check_writable, expand_path, write_text
from deformdetr.data import (
    DataConfig,
    DetectionDataset,
    LabelMap,
    ShapesConfig,
    build_dataset,
    panoptic_truth,
)
from deformdetr.engine._checkpoint import is_unknown
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.engine._evaluation_files import write_report
from deformdetr.engine._experiment import validate_experiment
from deformdetr.engine._inference import COCO_DETECTIONS, detect, evaluation_postprocess, panoptic_postprocess
from deformdetr.engine._loaders import batches, eval_loader
from deformdetr.engine._processes import Processes
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._run_directory import RunDirectory, load_run
from deformdetr.engine._settings import merge
from deformdetr.evaluation import CocoEvaluator, CocoMetrics, PanopticEvaluator
from deformdetr.models import PanopticPostProcess
from deformdetr.structures import Detections


class Evaluation(NamedTuple):
    """COCO's metrics, pycocotools' table of them, a table by category, and one of PQ if it was computed."""

    metrics: CocoMetrics
    table: str
    class_table: str
    panoptic_table: str | None = None


class _Evaluators(NamedTuple):
    coco: CocoEvaluator
    panoptic: PanopticEvaluator | None


def evaluate(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    dataset: DetectionDataset,
    processes: Processes,
    *,
    batch_size: int,
    num_workers: int = 0,
    precision: str = "float32",
    max_detections: int = COCO_DETECTIONS,
    panoptic: PanopticPostProcess | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a model with pycocotools. Each process evaluates its share of the images and returns the result of all.

    Args:
        model: Model to evaluate. It is switched to evaluation mode, and back to its mode afterwards.
        postprocess: Function from predictions and image sizes to detections. Masks must be boolean.
        dataset: Validation dataset. Its masks, if it has any, are evaluated too.
        processes: The processes that call this function together.
        batch_size: Images per forward pass.
        num_workers: Processes that load images.
        precision: As in `TrainConfig`.
        max_detections: Detections per image and class that count, at least 100.
        panoptic: Post-processing for panoptic segmentations, whose quality is computed then. The dataset needs masks.
        progress: Called with the number of batches done and the total.

    Examples:
        >>> from deformdetr.config import DeformableDETRConfig, preset
        >>> from deformdetr.data import ShapesConfig, build_dataset
        >>> from deformdetr.engine import Processes, evaluate
        >>> config, dataset = preset("demo"), build_dataset(ShapesConfig(num_val=2), "val")
        >>> result = evaluate(config.build(), config.build_postprocess(), dataset, Processes(), batch_size=2)
        >>> 0 <= result.metrics["AP"] <= 1
        True
    """
    evaluators = _collect(
        model,
        postprocess,
        dataset,
        processes,
        batch_size=batch_size,
        num_workers=num_workers,
        precision=precision,
        max_detections=max_detections,
        panoptic=panoptic,
        progress=progress,
    )
    return _result(evaluators, processes)


def _collect(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    dataset: DetectionDataset,
    processes: Processes,
    *,
    batch_size: int,
    num_workers: int,
    precision: str,
    max_detections: int,
    panoptic: PanopticPostProcess | None,
    progress: Callable[[int, int], None] | None,
) -> _Evaluators:
    """Return evaluators with the detections of all processes. Arguments are those of `evaluate`."""
    loader = eval_loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    has_masks = dataset.annotations.segmentations is not None
    evaluator = CocoEvaluator(
        dataset.coco_ground_truth(), dataset.label_map, masks=has_masks, max_detections=max_detections
    )
    of_segments = None if panoptic is None else PanopticEvaluator(dataset.label_map, panoptic.stuff)
    positions = {image_id: index for index, image_id in enumerate(dataset.annotations.image_ids)}
    was_training = model.training
    model.eval()
    for done, (images, targets) in enumerate(batches(loader), start=1):
        sizes = [(int(target["orig_size"][0]), int(target["orig_size"][1])) for target in targets]
        num_labels = dataset.label_map.num_classes
        found = detect(model, postprocess, images, sizes, num_labels=num_labels, precision=precision, panoptic=panoptic)
        image_ids = [target["image_id"] for target in targets]
        evaluator.update(found.detections, image_ids)
        if of_segments is not None and found.segmentations is not None:
            for image_id, segmentation in zip(image_ids, found.segmentations, strict=True):
                of_segments.update(segmentation, panoptic_truth(dataset.annotations, positions[image_id]))
        if progress is not None:
            progress(done, len(loader))
    model.train(was_training)
    evaluator.merge(processes.gather(evaluator.state()))
    if of_segments is not None:
        of_segments.merge(processes.gather(of_segments.state()))
    return _Evaluators(evaluator, of_segments)


def _result(evaluators: _Evaluators, processes: Processes) -> Evaluation:
    """Compute the metrics in the main process, and return them in all."""
    evaluation: Evaluation = processes.broadcast(_compute(*evaluators) if processes.is_main else None)
    return evaluation


def _compute(coco: CocoEvaluator, panoptic: PanopticEvaluator | None) -> Evaluation:
    metrics = coco.compute()
    if panoptic is None:
        return Evaluation(metrics, coco.table(), coco.class_table())
    metrics["panoptic"] = panoptic.compute()
    return Evaluation(metrics, coco.table(), coco.class_table(), panoptic.table())


def evaluate_run(
    run: str | Path,
    *,
    data_changes: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    max_detections: int | None = None,
    output: str | Path | None = None,
    num_worst: int = 12,
) -> Evaluation:
    """Evaluate a run on its validation images, with its best checkpoint or, if there is none, its last one.

    Beside the metrics, a folder of the same name gets `detections.json` in COCO's results format, which pycocotools'
    `loadRes` reads, pictures of precision over recall and of confusions, and those of the images with the most errors,
    beside their ground truth. Errors and confusions are counted at the threshold with the highest F1. Images without
    any annotation are predicted: `detections.json` is then the only file in the folder.

    If the model predicts masks and categories of the dataset are stuff (`isthing: 0`), the metrics include the panoptic
    quality.

    Args:
        run: As in `load_run`.
        data_changes: Settings that replace those of the run's dataset. Its categories must stay the same. A model of
            `save_pretrained` has no dataset and needs `val_images` and `val_annotations`.
        batch_size: Images per forward pass, by default as in training.
        max_detections: Detections per image and class that count, at least 100; by default as in training.
        output: JSON file for the metrics, by default `evaluation.json` in the run directory. Existing files are
            replaced. A run that is downloaded has no directory of its own and needs this.
        num_worst: Number of pictures of images with errors.

    Raises:
        ConfigError: If the changed settings are not valid.
        RunError: If the run does not exist, it has no dataset and `data_changes` names none, the categories of the
            dataset differ, or the run is downloaded and `output` is None.
        DatasetError: If the dataset has problems.
        ValueError: If `batch_size` is not positive, `num_worst` is negative, or `output` does not end in `.json`.
        OSError: If `output` is or lies in what is no folder.

    Examples:
        >>> from deformdetr.engine import evaluate_run
        >>> print(evaluate_run("runs/detector").table)  # doctest: +SKIP
    """
    if num_worst < 0:
        raise ValueError(f"num_worst must not be negative, got {num_worst}")
    path, checkpoint = load_run(run)
    file = _result_file(run, path, output)
    processes = Processes()
    experiment = _changed(checkpoint.experiment, data_changes, max_detections, source=str(path))
    dataset = _dataset(experiment, checkpoint.label_map, path)
    model = checkpoint.build().to(processes.device)
    with ProgressDisplay("evaluating", len(dataset), is_silent=not processes.is_main) as display:
        evaluators = _collect(
            model,
            evaluation_postprocess(experiment),
            dataset,
            processes,
            batch_size=experiment.train.batch_size if batch_size is None else batch_size,
            num_workers=experiment.data.num_workers,
            precision=experiment.train.precision,
            max_detections=experiment.train.max_detections,
            panoptic=panoptic_postprocess(experiment, dataset.label_map),
            progress=lambda done, total: display.update(len(dataset) * done // total),
        )
    evaluation = _result(evaluators, processes)
    if processes.is_main:
        record = {
            "checkpoint": path.name,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "images": len(dataset),
            "data": dataset.report.source,
            **evaluation.metrics,
        }
        write_text(file, json.dumps(record, indent=2) + "\n")
        write_report(file.with_suffix(""), evaluators.coco, evaluation.metrics, dataset, num_worst=num_worst)
    return evaluation


def _result_file(run: str | Path, path: Path, output: str | Path | None) -> Path:
    """Return the file for the metrics.

    Raises:
        RunError: If it would lie in the folder of downloads.
        ValueError: If it does not end in `.json`, since a folder has the name without it.
        OSError: If it cannot be written.
    """
    if output is None and not expand_path(run).exists():
        raise RunError(f"{run} is downloaded and has no run directory: name a JSON file to write, output or --output")
    file = RunDirectory(path.parent).evaluation if output is None else Path(output)
    check_writable(file, suffixes=(".json",), overwrite=True)
    check_folder(file.with_suffix(""))
    return file


def _changed(
    experiment: Experiment, data_changes: Mapping[str, Any] | None, max_detections: int | None, *, source: str
) -> Experiment:
    """Return the experiment with other settings of the dataset and of evaluation."""
    changes: dict[str, Any] = {"data": data_changes} if data_changes else {}
    if max_detections is not None:
        changes["train"] = {"max_detections": max_detections}
    if not changes:
        return experiment
    return validate_experiment(merge(experiment.model_dump(mode="json"), changes), source=source)


def _dataset(experiment: Experiment, label_map: LabelMap, path: Path) -> DetectionDataset:
    """Return the validation images of an experiment.

    Raises:
        RunError: If they are not known, or their labels are not those of the checkpoint.
    """
    data = experiment.data
    if isinstance(data, DataConfig) and is_unknown(data):
        raise RunError(f"{path} was published without its dataset: name one, data.val_images and data.val_annotations")
    if not isinstance(data, ShapesConfig):
        data = data.replace(label_map=label_map)
    dataset = build_dataset(data, "val", masks=experiment.model.masks)
    if dataset.label_map != label_map:
        raise RunError(
            f"{path} has the labels {', '.join(label_map.names)}, but the dataset has "
            f"{', '.join(dataset.label_map.names)}"
        )
    return dataset
