"""Evaluation of models and of finished runs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deformdetr._files import write_text
from deformdetr.data import AnyDataConfig, DataConfig, DetectionDataset, LabelMap, build_dataset
from deformdetr.engine._errors import RunError
from deformdetr.engine._experiment import validate_experiment
from deformdetr.engine._inference import MASK_THRESHOLD, detect
from deformdetr.engine._loaders import batches, eval_loader
from deformdetr.engine._processes import Processes
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._run_directory import load_run
from deformdetr.engine._settings import merge
from deformdetr.evaluation import CocoEvaluator, CocoMetrics
from deformdetr.structures import Detections


class Evaluation(NamedTuple):
    """COCO's metrics, pycocotools' table of them, and a table by category."""

    metrics: CocoMetrics
    table: str
    class_table: str


def evaluate(
    model: nn.Module,
    postprocess: Callable[..., list[Detections]],
    dataset: DetectionDataset,
    processes: Processes,
    *,
    batch_size: int,
    num_workers: int = 0,
    precision: str = "float32",
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
    loader = eval_loader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    has_masks = dataset.annotations.segmentations is not None
    evaluator = CocoEvaluator(dataset.coco_ground_truth(), dataset.label_map, masks=has_masks)
    was_training = model.training
    model.eval()
    for done, (images, targets) in enumerate(batches(loader), start=1):
        sizes = [(int(target["orig_size"][0]), int(target["orig_size"][1])) for target in targets]
        num_labels = dataset.label_map.num_classes
        found = detect(model, postprocess, images, sizes, num_labels=num_labels, precision=precision)
        evaluator.update(found, [target["image_id"] for target in targets])
        if progress is not None:
            progress(done, len(loader))
    model.train(was_training)
    evaluator.merge(processes.gather(evaluator.state()))
    result = Evaluation(evaluator.compute(), evaluator.table(), evaluator.class_table()) if processes.is_main else None
    evaluation: Evaluation = processes.broadcast(result)
    return evaluation


def evaluate_run(
    run: str | Path,
    *,
    data_changes: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    output: str | Path | None = None,
) -> Evaluation:
    """Evaluate a run on its validation images, with its best checkpoint or, if there is none, its last one.

    Args:
        run: A run directory, or one of its checkpoints.
        data_changes: Settings that replace those of the run's dataset. Its categories must stay the same.
        batch_size: Images per forward pass, by default as in training.
        output: JSON file for the metrics, by default `evaluation.json` in the run directory. An existing file is
            replaced.

    Raises:
        ConfigError: If the changed settings are not valid.
        RunError: If the run does not exist, or the categories of the dataset differ.
        DatasetError: If the dataset has problems.

    Examples:
        >>> from deformdetr.engine import evaluate_run
        >>> print(evaluate_run("runs/detector").table)  # doctest: +SKIP
    """
    path, checkpoint = load_run(run)
    processes = Processes()
    experiment = checkpoint.experiment
    if data_changes:
        changed = merge(experiment.model_dump(mode="json"), {"data": data_changes})
        experiment = validate_experiment(changed, source=str(path))
    data = _with_labels(experiment.data, checkpoint.label_map)
    dataset = build_dataset(data, "val", masks=experiment.model.masks)
    if dataset.label_map != checkpoint.label_map:
        raise RunError(
            f"{path} has the labels {', '.join(checkpoint.label_map.names)}, but the dataset has "
            f"{', '.join(dataset.label_map.names)}"
        )
    model = checkpoint.build().to(processes.device)
    with ProgressDisplay("evaluating", len(dataset), is_silent=not processes.is_main) as display:
        evaluation = evaluate(
            model,
            experiment.model.build_postprocess(mask_threshold=MASK_THRESHOLD),
            dataset,
            processes,
            batch_size=batch_size or experiment.train.batch_size,
            num_workers=experiment.data.num_workers,
            precision=experiment.train.precision,
            progress=lambda done, total: display.update(len(dataset) * done // total),
        )
    if processes.is_main:
        record = {
            "checkpoint": path.name,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "images": len(dataset),
            "data": dataset.report.source,
            **evaluation.metrics,
        }
        write_text(Path(output or path.parent / "evaluation.json"), json.dumps(record, indent=2) + "\n")
    return evaluation


def _with_labels(data: AnyDataConfig, label_map: LabelMap) -> AnyDataConfig:
    return data.replace(label_map=label_map) if isinstance(data, DataConfig) else data
