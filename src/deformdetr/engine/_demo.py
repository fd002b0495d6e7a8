"""A demonstration in minutes on two CPU cores: training on synthetic shapes, evaluation and pictures."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn

from deformdetr.config import DeformableDETRConfig, preset
from deformdetr.data import DetectionDataset, ShapesConfig, build_dataset
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.engine._evaluate import Evaluation, evaluate_run
from deformdetr.engine._inference import MASK_THRESHOLD, detect
from deformdetr.engine._run_directory import RunDirectory, load_run
from deformdetr.engine._train import TrainResult, train
from deformdetr.engine._train_config import CosineSchedule, TrainConfig
from deformdetr.models import PostProcess, capture
from deformdetr.structures import ImageBatch
from deformdetr.visualize import draw_comparison, plot_sampling_points, save_image

_PICTURES = ("detections.png", "sampling_points.png")
_ROWS = 3


class DemoResult(NamedTuple):
    """The training run, its evaluation, and the paths of two pictures."""

    training: TrainResult
    evaluation: Evaluation
    detections: Path
    sampling_points: Path


def demo_experiment(*, masks: bool = False) -> Experiment:
    """Return the experiment of the demonstration: the preset `demo` on synthetic shapes.

    With masks, it trains for twice as many epochs, because only the last decoder layer predicts masks.

    Examples:
        >>> from deformdetr.engine import demo_experiment
        >>> demo_experiment().train.epochs
        7
    """
    epochs = 14 if masks else 7
    return Experiment(
        model=preset("demo").replace(masks=masks),
        data=ShapesConfig(num_train=1600, num_val=200, image_size=96),
        train=TrainConfig(
            epochs=epochs,
            batch_size=8,
            lr=2e-3,
            lr_backbone_multiplier=1.0,
            schedule=CosineSchedule(),
            warmup_steps=50,
            max_grad_norm=1.0,
            eval_every=7,
            seed=0,
        ),
    )


def run_demo(out_dir: str | Path, experiment: Experiment | None = None) -> DemoResult:
    """Train, evaluate, and draw detections beside the ground truth, and the sampling points of one query.

    Args:
        out_dir: Run directory, also for the pictures. An earlier demonstration in it is replaced.
        experiment: Experiment to run, by default `demo_experiment()`.

    Raises:
        RunError: If the directory holds other files, or the model is not a Deformable DETR.

    Examples:
        >>> from deformdetr.engine import run_demo
        >>> run_demo("runs/demo").evaluation.metrics["AP50"]  # doctest: +SKIP
    """
    experiment = demo_experiment() if experiment is None else experiment
    if not isinstance(experiment.model, DeformableDETRConfig):
        kind = experiment.model.kind
        raise RunError(f"the demonstration draws sampling points, which a model of kind {kind!r} does not have")
    run = RunDirectory(out_dir)
    _clear(run)
    with _one_thread():
        result = train(experiment, run.path)
        evaluation = evaluate_run(run.path)
    _, checkpoint = load_run(run.path)
    model = checkpoint.build()
    described = checkpoint.experiment
    dataset = build_dataset(described.data, "val", masks=described.model.masks)
    postprocess = described.model.build_postprocess(mask_threshold=MASK_THRESHOLD)
    detections, sampling_points = (run.path / name for name in _PICTURES)
    crowded = [index for index in range(len(dataset)) if len(dataset[index][1]["labels"]) >= 3] or [0]
    save_image(_draw_detections(model, postprocess, dataset, crowded[:_ROWS]), detections)
    save_image(_draw_sampling_points(model, dataset, crowded[0]), sampling_points)
    return DemoResult(result, evaluation, detections, sampling_points)


@contextmanager
def _one_thread() -> Iterator[None]:
    # For tensors this small, a second thread saves a quarter of the time, but costs 40 times as much on a busy core.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _clear(run: RunDirectory) -> None:
    """Remove the files of an earlier demonstration.

    Raises:
        RunError: If there are other files.
    """
    if not run.path.exists():
        return
    own = {*run.file_names(), *_PICTURES}
    found = {each.name for each in run.path.iterdir()}
    if found - own:
        raise RunError(
            f"{run.path} holds {', '.join(sorted(found - own)[:5])}, which are not from a demonstration; name "
            "another directory"
        )
    for path in (run.path / name for name in found):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _draw_detections(
    model: nn.Module, postprocess: PostProcess, dataset: DetectionDataset, indices: list[int]
) -> Image.Image:
    names = dataset.label_map.names
    rows = []
    for index in indices:
        picture, target = dataset.untransformed(index)
        image, _ = dataset[index]
        size = (picture.shape[1], picture.shape[2])
        batch = ImageBatch.from_images([image])
        (found,) = detect(model, postprocess, batch, [size], num_labels=len(names)).detections
        rows.append(draw_comparison(picture, found, target, names, score_threshold=0.3))
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), (255, 255, 255))
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def _draw_sampling_points(model: nn.Module, dataset: DetectionDataset, index: int) -> Image.Image:
    """Plot where the query with the highest score samples in the last decoder layer."""
    picture, _ = dataset.untransformed(index)
    image, _ = dataset[index]
    with capture(model) as captured, torch.inference_mode():
        outputs = model([image])
    scores, labels = outputs["pred_logits"][0].sigmoid().max(-1)
    query = int(scores.argmax())
    name = dataset.label_map.names[int(labels[query])]
    *_, last_layer = captured.layers
    locations, weights, reference = captured.in_image(last_layer, image=0, query=query)
    return plot_sampling_points(
        picture,
        locations,
        weights,
        reference=reference,
        title=f"query {query}, {name} {float(scores[query]):.2f}: what the last decoder layer samples",
    )
