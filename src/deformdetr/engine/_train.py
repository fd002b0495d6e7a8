"""Training of detectors."""

import signal as signals
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from deformdetr.data import Datasets, build_datasets, judge
from deformdetr.engine._best import BestScore
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._epoch import EpochProgress
from deformdetr.engine._errors import RunError, TrainingInterrupted
from deformdetr.engine._evaluate import Evaluation, evaluate
from deformdetr.engine._experiment import all_changes, object_limits, resolve
from deformdetr.engine._inference import evaluation_postprocess, panoptic_postprocess
from deformdetr.engine._initial_model import initial_model, locate_initial_weights
from deformdetr.engine._launcher import check_launcher
from deformdetr.engine._learner import Learner
from deformdetr.engine._loaders import batches, train_loader
from deformdetr.engine._processes import Processes, describe_environment
from deformdetr.engine._progress import ProgressDisplay
from deformdetr.engine._run_directory import RunDirectory
from deformdetr.engine._schedule import check_past, describe_schedule, learning_rate_factor, total_steps
from deformdetr.engine._seeds import seed_everything
from deformdetr.engine._signals import StopSignals
from deformdetr.engine._tracking import Tracking, check_tools
from deformdetr.engine._trainable import refuse_random_frozen
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
    seeded in each step, so that a resumed run equals an uninterrupted one, bit for bit on a CPU.

    SIGINT, SIGTERM and SIGHUP save a checkpoint after the current step and then end the training. A second signal, a
    second or more after the first, ends it at once.

    Args:
        experiment: Model, dataset and settings of training.
        output_dir: Run directory. It must be empty or absent unless `resume` is True.
        resume: Whether to continue the run in the directory after its last saved step, or start one if there is none.
            The number of epochs may then be another, and the schedule, as far as it does not concern finished epochs.

    Raises:
        ConfigError: If model and dataset do not fit together, parts of the model are both random and frozen,
            `train.init_checkpoint` names no single file, a package of `train.tracking` is missing, or the config of
            `accelerate launch` contradicts the settings.
        DatasetError: If the dataset has problems, or an image cannot be read.
        RunError: If the directory holds other files or another run, another training is running in it, or processes
            find different checkpoints in it.
        TrainingError: If a loss or a gradient is not finite.
        TrainingInterrupted: If a signal has ended the training. It is a `KeyboardInterrupt`.
        CheckpointError: If `train.init_checkpoint` does not fit the model.
        FileNotFoundError: If `train.init_checkpoint` or the backbone's weights do not exist.
        ConnectionError: If one of them cannot be downloaded.
        OSError: If a file of the run cannot be written. Files that were saved before are intact.

    Examples:
        >>> from deformdetr.engine import read_experiment, train
        >>> result = train(read_experiment("detector.yaml"), "runs/detector")  # doctest: +SKIP
    """
    check_launcher(experiment.train)
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
    # The others find what it downloads, and the index of large annotation files.
    with processes.main_first():
        if not resume:
            locate_initial_weights(experiment)  # Reading a large dataset takes longer than to find that it is missing.
        datasets = build_datasets(experiment.data, masks=experiment.model.masks)
    experiment = resolve(experiment, datasets.train.label_map)
    notes = [f"warning: {each}" for each in judge(datasets, limits=object_limits(experiment))]
    checkpoint = run.open(experiment, resume=resume, say=notes.append)
    _check_agreement(processes, run, checkpoint)
    training = _Training(experiment, datasets, processes, run, checkpoint, notes=notes)
    processes.wait()
    if not processes.is_main:
        return training.run()
    with run.claimed():
        run.create(experiment, describe_environment(processes), epoch=training.epoch)
        return training.run()


def _check_agreement(processes: Processes, run: RunDirectory, checkpoint: Checkpoint | None) -> None:
    """Check that all processes resume from the same step, because each reads the directory on its own machine."""
    steps = processes.gather(0 if checkpoint is None else checkpoint.step)
    if len(set(steps)) > 1:
        raise RunError(
            f"{run.path}: the processes would continue from different steps ({', '.join(map(str, steps))}); to resume, "
            "all machines must share this directory"
        )


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
        notes: list[str],
    ) -> None:
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
        self._signals = StopSignals()
        # Of the epoch that has begun, in this process.
        self._progress = EpochProgress()
        self._changes: dict[str, tuple[Any, Any]] = {}
        if checkpoint is not None:
            self._changes = all_changes(checkpoint.experiment, experiment)
            begun = -(-checkpoint.step // self._steps_per_epoch)
            check_past(checkpoint.experiment.train, self._config, epochs=begun, steps_per_epoch=self._steps_per_epoch)
        # All processes start from the same weights.
        seed_everything(self._config.seed, rank=0, step=0)
        with processes.main_first():
            model, notes_on_weights = initial_model(experiment, checkpoint, processes.device)
        self._notes = [*notes, *notes_on_weights]
        self._learner = Learner(model, experiment.model.build_criterion(), self._config, processes)
        if checkpoint is None and self._config.init_checkpoint is None:
            refuse_random_frozen(model, experiment.model.backbone)
        self._postprocess = evaluation_postprocess(experiment)
        if checkpoint is not None and checkpoint.training is not None:
            try:
                saved_by = self._load_state(checkpoint.training)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise RunError(f"{run.path}: does not hold the state for resuming this run: {error}") from error
            if saved_by not in (0, processes.world_size):
                raise RunError(
                    f"{run.path}: the checkpoint was saved during an epoch by {saved_by} processes, which divided its "
                    f"images, so that {processes.world_size} cannot continue it; start {saved_by}"
                )

    def _load_state(self, state: Mapping[str, Any]) -> int:
        """Restore a state, and return how many processes saved it during an epoch, 0 after one."""
        self._learner.load_state(state["learner"])
        self._best.load_state(state["best"])
        # Absent in checkpoints of older versions, which are of whole epochs.
        self._changes = {name: (old, new) for name, (old, new) in state.get("changes", {}).items()} | self._changes
        progress = TypeAdapter(list[EpochProgress]).validate_python(state.get("progress") or [])
        if len(progress) == self._processes.world_size:
            self._progress = progress[self._processes.rank]
        return len(progress)

    def run(self) -> TrainResult:
        """Run the remaining epochs."""
        with (
            ProgressDisplay(
                "starting",
                self._total_steps,
                done=self._step,
                log_every=self._config.log_every,
                is_silent=not self._processes.is_main,
            ) as display,
            self._signals,
        ):
            for line in (*self._notes, *self._describe()):
                display.say(line)
            with closing(Tracking(self._processes, self._experiment, self._run.path)) as tracking:
                while self._progress.steps or not self._has_ended:
                    self._run_epoch(display, tracking)
            display.say(self._ending())
        return TrainResult(self._run.path, self.epoch, self._step, self._metrics, self._best.ap)

    @property
    def _has_ended(self) -> bool:
        return self._is_last(self.epoch) or self._best.has_ended

    def _is_last(self, epoch: int) -> bool:
        return epoch >= self._config.epochs or self._step >= self._total_steps

    def _run_epoch(self, display: ProgressDisplay, tracking: Tracking) -> None:
        """Run an epoch, or what is left of it."""
        self._learn(display)
        epoch = self.epoch + 1
        row = self._row(epoch)
        is_best = False
        if self._is_last(epoch) or epoch % self._config.eval_every == 0:
            self._metrics = dict(self._evaluate(display).metrics)
            row |= self._metrics
            is_best = self._best.update(self._metrics)
        self.epoch, self._progress, self._changes = epoch, EpochProgress(), {}
        signal = self._processes.largest(self._signals.received)
        if self._processes.is_main:
            display.say(_summary(row, self._config.epochs))
            is_due = self._has_ended or bool(signal) or self.epoch % self._config.save_every == 0
            self._save(row, display, is_best=is_best, is_due=is_due)
        tracking.log(row, step=self._step)
        self._processes.wait()
        if signal and not self._has_ended:
            raise self._interrupted(signal)

    def _row(self, epoch: int) -> dict[str, Any]:
        """Return what the metrics of an epoch start with: mean losses and speed over all processes."""
        losses = self._processes.mean(self._progress.means())
        seconds = self._progress.seconds
        num_images = self._progress.batches * self._config.batch_size * self._processes.world_size
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": self._step,
            **losses,
            "lr": self._learner.learning_rates(),
            "seconds": round(seconds, 3),
            "images_per_second": round(num_images / seconds, 2),
        }
        if self._changes:
            row["changed"] = {name: list(values) for name, values in self._changes.items()}
        return row

    def _learn(self, display: ProgressDisplay) -> None:
        """Train for the rest of an epoch."""
        self._sampler.set_epoch(self.epoch, skip=self._progress.batches * self._config.batch_size)
        self._learner.start_epoch()
        loader = iter(batches(self._loader))
        started = time.monotonic()
        while self._step < self._total_steps and (group := list(islice(loader, self._config.accumulate_steps))):
            seed_everything(self._config.seed, rank=self._processes.rank, step=self._step + 1)
            losses = self._learner.learn(group, step=self._step + 1)
            self._learner.step(
                learning_rate_factor(
                    self._config, self._step, steps_per_epoch=self._steps_per_epoch, total_steps=self._total_steps
                )
            )
            self._step += 1
            now = time.monotonic()
            self._progress.add(losses, batches=len(group), seconds=now - started)
            started = now
            precision = self._metrics.get("AP")
            status = f"loss {self._progress.means()['loss']:.3f}"
            status += "" if precision is None else f"  AP {precision:.3f}"
            display.update(self._step, description=f"epoch {self.epoch + 1}/{self._config.epochs}", status=status)
            self._save_or_stop()
        self._learner.check_gradient()

    def _save_or_stop(self) -> None:
        """Save after a step if `train.save_every_steps` or a signal asks for it, and end the run after a signal."""
        signal = self._processes.largest(self._signals.received)
        every = self._config.save_every_steps
        if signal or (every is not None and self._step % every == 0):
            self._learner.check_gradient()
            self._save_last(self._processes.gather(self._progress.state()))
        if signal:
            # The launcher may end all processes as soon as one has ended.
            self._processes.wait()
            raise self._interrupted(signal)

    def _evaluate(self, display: ProgressDisplay) -> Evaluation:
        progress = self._processes.gather(self._progress.state())

        def show(done: int, total: int) -> None:
            display.within("evaluating", done, total)
            # Not agreed between processes, which evaluate different numbers of batches: each gets the signal.
            if self._signals.received:
                self._save_last(progress)
                raise self._interrupted(self._signals.received)

        return evaluate(
            self._learner.result,
            self._postprocess,
            self._datasets.val,
            self._processes,
            batch_size=self._config.batch_size,
            num_workers=self._experiment.data.num_workers,
            precision=self._config.precision,
            max_detections=self._config.max_detections,
            panoptic=panoptic_postprocess(self._experiment, self._datasets.val.label_map),
            progress=show,
        )

    def _interrupted(self, signal: int) -> TrainingInterrupted:
        name = signals.Signals(signal).name
        message = f"{name} after step {self._step}: {self._run.last} is saved, and `--resume` continues from it"
        # One message is enough for all processes.
        return TrainingInterrupted(message if self._processes.is_main else "", signal)

    def _save(self, row: dict[str, Any], display: ProgressDisplay, *, is_best: bool, is_due: bool) -> None:
        """Save metrics, curves and checkpoints after an epoch, in the main process."""
        self._run.append_metrics(row)
        try:
            plot_curves(self._run.read_metrics(), self._run.curves)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            # The numbers are in the metrics, and a broken installation of matplotlib is no reason to end a run.
            display.say(f"warning: {self._run.curves} is not drawn: {error}")
        # The best checkpoint comes first: a run that stops in between repeats the epoch and saves the same again.
        if is_best:
            self._checkpoint().save(self._run.best)
        if is_due:
            self._save_last(None)

    def _save_last(self, progress: list[dict[str, Any]] | None) -> None:
        """Save the latest checkpoint, in the main process. `progress` is that of an unfinished epoch, by process."""
        if self._processes.is_main:
            state = {
                "learner": self._learner.state(),
                "best": self._best.state(),
                "progress": progress,
                "changes": {name: list(values) for name, values in self._changes.items()},
            }
            self._run.save_last(replace(self._checkpoint(), training=state))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            model=self._learner.result.state_dict(),
            experiment=self._experiment,
            label_map=self._datasets.train.label_map,
            epoch=self.epoch,
            step=self._step,
            metrics=self._metrics,
        )

    def _describe(self) -> list[str]:
        parameters = sum(each.numel() for each in self._learner.module.parameters() if each.requires_grad)
        images = self._config.batch_size * self._config.accumulate_steps * self._processes.world_size
        start = "starting"
        if self._step:
            start = f"resuming after {f'step {self._step}' if self._progress.steps else f'epoch {self.epoch}'}"
        return [
            f"train: {self._datasets.train.report}",
            f"val: {self._datasets.val.report}",
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


def _summary(row: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {row['epoch']}/{epochs}", f"step {row['step']}", f"loss {row['loss']:.3f}"]
    parts += [f"{name} {row[name]:.3f}" for name in ("AP", "AP50", "AP75") if row.get(name) is not None]
    of_masks = row.get("segm", {}).get("AP")
    parts += [] if of_masks is None else [f"mask AP {of_masks:.3f}"]
    quality = row.get("panoptic", {}).get("PQ")
    parts += [] if quality is None else [f"PQ {quality:.3f}"]
    return "  ".join([*parts, f"{row['images_per_second']:.1f} images/s"])
