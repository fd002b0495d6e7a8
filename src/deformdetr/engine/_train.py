"""Training of detectors."""

import platform
import sys
import time
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from deformdetr._files import FileError
from deformdetr.config import with_backbone_weights
from deformdetr.data import Datasets, build_datasets, judge
from deformdetr.engine._best import BestScore
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError, RunError
from deformdetr.engine._evaluate import Evaluation, evaluate
from deformdetr.engine._experiment import all_changes, object_limits, resolve
from deformdetr.engine._inference import evaluation_postprocess
from deformdetr.engine._learner import Learner
from deformdetr.engine._loaders import batches, train_loader
from deformdetr.engine._processes import Processes
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._run_directory import RunDirectory
from deformdetr.engine._schedule import check_past, describe_schedule, learning_rate_factor, total_steps
from deformdetr.engine._seeds import seed_everything
from deformdetr.engine._tracking import Tracking, check_tools
from deformdetr.engine._trainable import refuse_random_frozen
from deformdetr.integrations import load_checkpoint, locate_checkpoint
from deformdetr.models import DETR, DeformableDETR
from deformdetr.visualize import plot_curves


class TrainResult(NamedTuple):
    """The result of a training run.

    `metrics` are COCO's metrics of the last epoch. `best` is the highest AP, or `None` if there are no objects.
    """

    run: Path
    epoch: int
    step: int
    metrics: dict[str, Any]
    best: float | None


def train(experiment: Experiment, output_dir: str | Path, *, resume: bool = False) -> TrainResult:
    """Train and evaluate a model, and write checkpoints, metrics and curves to a run directory.

    Each process of `accelerate launch` or `torchrun` calls this function with the same arguments. Random numbers are
    seeded in each epoch, so that a resumed run equals an uninterrupted one, bit for bit on a CPU.

    Args:
        experiment: Model, dataset and settings of training.
        output_dir: Run directory. It must be empty or absent unless `resume` is True.
        resume: Whether to continue the run in the directory after its last saved epoch, or start one if there is none.
            The number of epochs may then be another, and the schedule, as far as it does not concern finished epochs.

    Raises:
        ConfigError: If model and dataset do not fit together, parts of the model are both random and frozen,
            `train.init_checkpoint` names no single file, or a package of `train.tracking` is missing.
        DatasetError: If the dataset has problems, or an image cannot be read.
        RunError: If the directory holds other files or another run.
        TrainingError: If a loss or a gradient is not finite.
        CheckpointError: If `train.init_checkpoint` does not fit the model.
        FileNotFoundError: If `train.init_checkpoint` or the backbone's weights do not exist.
        ConnectionError: If one of them cannot be downloaded.
        OSError: If a file of the run cannot be written. Files that were saved before are intact.

    Examples:
        >>> from deformdetr.engine import read_experiment, train
        >>> result = train(read_experiment("detector.yaml"), "runs/detector")  # doctest: +SKIP
    """
    run = RunDirectory(output_dir)
    run.check_usable(resume=resume)
    tracking = experiment.train.tracking
    if tracking is not None:
        check_tools(tracking)
    processes = Processes(
        has_unused_parameters=not experiment.model.aux_loss,
        trackers=() if tracking is None else tracking.tools,
        tracking_dir=run.tracking,
    )
    # The others find the index of large annotation files.
    with processes.main_first():
        datasets = build_datasets(experiment.data, masks=experiment.model.masks)
    experiment = resolve(experiment, datasets.train.label_map)
    warnings = judge(datasets, limits=object_limits(experiment))
    checkpoint = run.open(experiment, resume=resume)
    training = _Training(experiment, datasets, processes, run, checkpoint, warnings=warnings)
    processes.wait()
    if processes.is_main:
        run.create(experiment, _environment(processes), epoch=training.epoch)
    return training.run()


class _Training:
    """The state of a run."""

    def __init__(
        self,
        experiment: Experiment,
        datasets: Datasets,
        processes: Processes,
        run: RunDirectory,
        checkpoint: Checkpoint | None,
        *,
        warnings: list[str],
    ) -> None:
        self._warnings = warnings
        self._experiment = experiment
        self._config = experiment.train
        self._datasets = datasets
        self._processes = processes
        self._run = run
        self._loader, self._sampler = train_loader(
            datasets.train,
            batch_size=self._config.batch_size,
            num_workers=experiment.data.num_workers,
            seed=self._config.seed,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        self._steps_per_epoch = -(-len(self._loader) // self._config.accumulate_steps)
        self._total_steps = total_steps(self._config, steps_per_epoch=self._steps_per_epoch)
        self.epoch = 0 if checkpoint is None else checkpoint.epoch
        self._step = 0 if checkpoint is None else checkpoint.step
        self._metrics: dict[str, Any] = {} if checkpoint is None else checkpoint.metrics
        self._best = BestScore(self._config.early_stopping)
        self._changes: dict[str, tuple[Any, Any]] = {}
        if checkpoint is not None:
            self._changes = all_changes(checkpoint.experiment, experiment)
            old, epochs = checkpoint.experiment.train, checkpoint.epoch
            check_past(old, self._config, epochs=epochs, steps_per_epoch=self._steps_per_epoch)
        # All processes start from the same weights.
        seed_everything(self._config.seed, rank=0, epoch=0)
        with processes.main_first():
            model, self._notes = _build(experiment, checkpoint)
        self._learner = Learner(model, experiment.model.build_criterion(), self._config, processes)
        if checkpoint is None and self._config.init_checkpoint is None:
            refuse_random_frozen(model, experiment.model.backbone)
        self._postprocess = evaluation_postprocess(experiment)
        if checkpoint is not None and checkpoint.training is not None:
            try:
                self._learner.load_state(checkpoint.training["learner"])
                self._best.load_state(checkpoint.training["best"])
            except (LookupError, TypeError, ValueError) as error:
                raise RunError(f"{run.last}: does not hold the state for resuming this run: {error}") from error

    def run(self) -> TrainResult:
        """Run the remaining epochs."""
        with ProgressDisplay(
            "starting",
            self._total_steps,
            done=self._step,
            log_every=self._config.log_every,
            is_silent=not self._processes.is_main,
        ) as display:
            for line in (*self._notes, *self._describe()):
                display.say(line)
            with closing(Tracking(self._processes, self._experiment, self._run.path)) as tracking:
                while not self._has_ended:
                    self._run_epoch(display, tracking)
            display.say(self._ending())
        return TrainResult(self._run.path, self.epoch, self._step, self._metrics, self._best.ap)

    @property
    def _has_ended(self) -> bool:
        return self._is_last or self._best.has_ended

    @property
    def _is_last(self) -> bool:
        return self.epoch >= self._config.epochs or self._step >= self._total_steps

    def _run_epoch(self, display: ProgressDisplay, tracking: Tracking) -> None:
        started = time.monotonic()
        losses, num_images = self._learn(display)
        seconds = time.monotonic() - started
        self.epoch += 1
        row: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self._step,
            **losses,
            "lr": self._learner.learning_rates(),
            "seconds": round(seconds, 3),
            "images_per_second": round(num_images / seconds, 2),
        }
        if self._changes:
            row["changed"] = {name: list(values) for name, values in self._changes.items()}
            self._changes = {}
        is_best = False
        if self._is_last or self.epoch % self._config.eval_every == 0:
            self._metrics = dict(self._evaluate(display).metrics)
            row |= self._metrics
            is_best = self._best.update(self._metrics)
        if self._processes.is_main:
            display.say(_summary(row, self._config.epochs))
            self._save(row, is_best=is_best, is_due=self._has_ended or self.epoch % self._config.save_every == 0)
        tracking.log(row, step=self._step)
        self._processes.wait()

    def _learn(self, display: ProgressDisplay) -> tuple[dict[str, float], int]:
        """Train for an epoch, and return the mean losses and the number of images over all processes."""
        seed_everything(self._config.seed, rank=self._processes.rank, epoch=self.epoch + 1)
        self._sampler.set_epoch(self.epoch)
        self._learner.start_epoch()
        totals: dict[str, float] = {}
        loader = iter(batches(self._loader))
        num_steps = num_batches = 0
        while self._step < self._total_steps and (group := list(islice(loader, self._config.accumulate_steps))):
            values = self._learner.learn(group, step=self._step + 1)
            self._learner.step(self._learning_rate_factor())
            self._step += 1
            num_steps, num_batches = num_steps + 1, num_batches + len(group)
            totals = {name: totals.get(name, 0.0) + value for name, value in values.items()}
            description = f"epoch {self.epoch + 1}/{self._config.epochs}"
            display.update(self._step, description=description, status=self._status(totals["loss"] / num_steps))
        self._learner.check_gradient()
        num_images = num_batches * self._config.batch_size * self._processes.world_size
        return self._processes.mean({name: total / num_steps for name, total in totals.items()}), num_images

    def _evaluate(self, display: ProgressDisplay) -> Evaluation:
        return evaluate(
            self._learner.result,
            self._postprocess,
            self._datasets.val,
            self._processes,
            batch_size=self._config.batch_size,
            num_workers=self._experiment.data.num_workers,
            precision=self._config.precision,
            max_detections=self._config.max_detections,
            progress=lambda done, total: display.within("evaluating", done, total),
        )

    def _save(self, row: dict[str, Any], *, is_best: bool, is_due: bool) -> None:
        self._run.append_metrics(row)
        plot_curves(self._run.read_metrics(), self._run.curves)
        checkpoint = Checkpoint(
            model=self._learner.result.state_dict(),
            experiment=self._experiment,
            label_map=self._datasets.train.label_map,
            epoch=self.epoch,
            step=self._step,
            metrics=self._metrics,
        )
        # The best checkpoint comes first: a run that stops in between repeats the epoch and saves the same again.
        if is_best:
            checkpoint.save(self._run.best)
        if is_due:
            state = {"learner": self._learner.state(), "best": self._best.state()}
            replace(checkpoint, training=state).save(self._run.last)

    def _learning_rate_factor(self) -> float:
        return learning_rate_factor(
            self._config, self._step, steps_per_epoch=self._steps_per_epoch, total_steps=self._total_steps
        )

    def _status(self, loss: float) -> str:
        precision = self._metrics.get("AP")
        return f"loss {loss:.3f}" + ("" if precision is None else f"  AP {precision:.3f}")

    def _describe(self) -> list[str]:
        parameters = sum(each.numel() for each in self._learner.module.parameters() if each.requires_grad)
        images = self._config.batch_size * self._config.accumulate_steps * self._processes.world_size
        start = f"resuming after epoch {self.epoch}" if self._step else "starting"
        return [
            f"train: {self._datasets.train.report}",
            f"val: {self._datasets.val.report}",
            *(f"warning: {each}" for each in self._warnings),
            f"{start} in {self._run.path}: {parameters:,} parameters on {self._learner.device}, {images} images per "
            f"step, {self._steps_per_epoch} steps per epoch, {self._config.epochs} epochs",
            *(f"{name}: {old!r} before, {new!r} now" for name, (old, new) in self._changes.items()),
            describe_schedule(self._config),
        ]

    def _ending(self) -> str:
        if self._best.has_ended:
            return (
                f"ended after epoch {self.epoch}: AP has not risen above {self._best.ap:.3f} in {self._best.waited} "
                "evaluations (train.early_stopping)"
            )
        if self._step >= self._total_steps and self._config.max_steps is not None:
            return f"ended after step {self._step} (train.max_steps is {self._config.max_steps})"
        return f"ended after epoch {self.epoch} (train.epochs is {self._config.epochs}, and may be raised to resume)"


def _build(experiment: Experiment, checkpoint: Checkpoint | None) -> tuple[DeformableDETR | DETR, list[str]]:
    """Return the model with its initial weights, and messages about loading them."""
    if checkpoint is not None:
        return checkpoint.build(), []
    source = experiment.train.init_checkpoint
    if source is None:
        return experiment.model.build(), []
    try:
        path = locate_checkpoint(source)
    except FileError as error:
        raise ConfigError(f"train.init_checkpoint: {error}") from error
    # Without weights of the backbone, which the checkpoint replaces.
    model = with_backbone_weights(experiment.model, None).build()
    report = load_checkpoint(model, path, drop_class_head=True, new_mask_head=True)
    return model, [f"{source}: {report}"]


def _summary(row: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {row['epoch']}/{epochs}", f"step {row['step']}", f"loss {row['loss']:.3f}"]
    parts += [f"{name} {row[name]:.3f}" for name in ("AP", "AP50", "AP75") if row.get(name) is not None]
    of_masks = row.get("segm", {}).get("AP")
    parts += [] if of_masks is None else [f"mask AP {of_masks:.3f}"]
    return "  ".join([*parts, f"{row['images_per_second']:.1f} images/s"])


def _environment(processes: Processes) -> dict[str, Any]:
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else platform.processor()
    return {
        "command": sys.argv,
        "deformdetr": version("deformdetr"),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{processes.device.type}: {device or platform.machine()}",
        "threads": torch.get_num_threads(),
        "processes": processes.world_size,
    }
