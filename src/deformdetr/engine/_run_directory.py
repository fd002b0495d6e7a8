"""Directories of training runs."""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deformdetr._files import (
    FileError,
    HubName,
    check_folder,
    is_unfinished,
    is_url,
    keep_as,
    locate_checkpoint,
    parse_source,
    read_mapping,
    remove_unfinished,
    write_mapping,
    write_text,
)
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.engine._experiment import changes_that_matter
from deformdetr.integrations import hub

# A launcher that starts a killed training again may do so before the last process that loads data has ended.
_SECONDS_TO_END = 10
_NEEDED = "a run directory of `deformdetr train`, one of its checkpoints, or a folder of save_pretrained is needed"


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
        config: The complete experiment, as YAML.
        metrics: Metrics with one JSON object per line and finished epoch.
        curves: Plot of losses and precision over the epochs.
        last: The latest checkpoint, for resuming.
        previous: The checkpoint before it, for resuming if the latest is damaged.
        best: The checkpoint with the highest AP.
        evaluation: The metrics of the latest `deformdetr eval`, as JSON.
        evaluation_files: Folder of its detections and pictures.
        environment: The command, versions and device of the latest start, as JSON.
        tracking: Folder for the files of trackers.

    Examples:
        >>> from deformdetr.engine import RunDirectory
        >>> RunDirectory("runs/demo").best.name
        'best.pt'
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.last = path / "last.pt"
        self.previous = path / "previous.pt"
        self.best = path / "best.pt"
        self.evaluation = path / "evaluation.json"
        self.evaluation_files = self.evaluation.with_suffix("")
        self.environment = path / "environment.json"
        self.tracking = path / "tracking"
        self._last_is_whole = True

    def file_names(self) -> set[str]:
        """Return the names of all files and folders that a run may have."""
        files = (self.config, self.metrics, self.curves, self.last, self.previous, self.best, self.environment)
        return {file.name for file in (*files, self.evaluation, self.evaluation_files, self.tracking)}

    def check_usable(self, *, resume: bool) -> None:
        """Check that the directory is absent, empty or, with `resume`, any directory, before a dataset is read.

        Raises:
            RunError: If it is not.
            PermissionError: If it may not be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file, not a directory")
        check_folder(self.path)
        content = self._content()
        if content and not resume:
            names = ", ".join(content[:5]) + (", ..." if len(content) > 5 else "")
            raise RunError(
                f"{self.path} is not empty (it holds {names}), and is not overwritten: name another directory, or "
                "resume the run"
            )

    def _content(self) -> list[str]:
        """Return the names of the files, without that of a process that was killed before it finished the first."""
        found = self.path.iterdir() if self.path.exists() else ()
        return sorted(each.name for each in found if not is_unfinished(each))

    def open(
        self, experiment: Experiment, *, resume: bool, say: Callable[[str], None] = lambda line: None
    ) -> Checkpoint | None:
        """Check that the directory fits the experiment, and return the checkpoint to resume from, if any.

        Without `resume`, the directory must be empty or absent. With it, the directory may hold a run of the same
        experiment. A run that has not saved a checkpoint yet starts from the beginning. If the latest checkpoint is
        damaged or missing, it is the one before. Nothing is changed.

        Args:
            experiment: The experiment to run.
            resume: Whether to continue the run in the directory.
            say: Function that is called with a line about the checkpoint that was taken.

        Raises:
            RunError: If the directory holds other files or a run of another experiment.
        """
        self.check_usable(resume=resume)
        if not self._content():
            return None
        checkpoint = self._latest(say)
        if checkpoint is None:
            if self.config.exists():
                return None
            raise RunError(f"{self.path} holds no run to resume (neither {self.last.name} nor {self.config.name})")
        changed = changes_that_matter(checkpoint.experiment, experiment)
        if changed:
            rows = "\n".join(f"  {name}: {old!r} before, {new!r} now" for name, (old, new) in changed.items())
            raise RunError(
                f"{self.path} cannot be resumed with a different config; these settings differ:\n{rows}\n"
                "Settings that a config leaves out have the defaults of this version, which may be others than those "
                f"that the run started with. {self.config} has them all and continues the run:\n"
                f"  deformdetr train {self.config} --output {self.path} --resume"
            )
        return checkpoint

    def _latest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the latest checkpoint that can be resumed from."""
        problems = []
        for file in (self.last, self.previous):
            try:
                checkpoint = _resumable(file) if file.exists() else None
            except RunError as error:
                problems.append(str(error))
                continue
            if checkpoint is not None:
                self._last_is_whole = file == self.last
                why = "".join(f"{each}; " for each in problems)
                say(f"{why}resuming from {file}")
                return checkpoint
        if problems:
            raise RunError("; ".join(problems))
        return None

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write the latest checkpoint. The one before stays as `previous`.

        Raises:
            OSError: If it cannot be written. The one before is then intact.
        """
        if self._last_is_whole and self.last.exists():
            keep_as(self.last, self.previous)
        checkpoint.save(self.last)
        self._last_is_whole = True

    def create(self, experiment: Experiment, environment: Mapping[str, Any], *, epoch: int) -> None:
        """Write config and environment into the directory, which is created unless it exists.

        Metrics of epochs after `epoch`, which will run again, are dropped. Unfinished files of killed processes are
        removed, because they would fill the disk over time.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.path)
        write_mapping(self.config, experiment.model_dump(mode="json"))
        write_mapping(self.environment, environment)
        self._write_metrics([row for row in self.read_metrics() if row["epoch"] <= epoch])

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the directory, and keep other trainings out of it until the context or the process ends.

        Nothing is kept out where folders cannot be locked: on Windows, and in some network file systems.

        Raises:
            RunError: If another training is running in the directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            deadline = time.monotonic() + _SECONDS_TO_END
            while not _lock(descriptor):
                if time.monotonic() > deadline:
                    raise RunError(f"{self.path}: another training is running in this directory")
                time.sleep(0.1)
            yield
        finally:
            os.close(descriptor)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to the metrics."""
        self._write_metrics([*self.read_metrics(), row])

    def _write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all metrics up to the first damaged line, since other software may have changed the file."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                break
            rows.append(row)
        return rows


def _lock(descriptor: int) -> bool:
    """Return whether a folder is now locked for this process, or cannot be."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def _resumable(file: Path) -> Checkpoint:
    """Return a checkpoint with a state for resuming.

    Raises:
        RunError: If the file is not one.
    """
    checkpoint = Checkpoint.load(file)
    if checkpoint.training is None:
        raise RunError(f"{file}: has no state for resuming")
    return checkpoint


def load_run(run: str | Path, *, prefer: Sequence[str] = ("best.pt", "last.pt")) -> tuple[Path, Checkpoint]:
    """Return the path of a run's checkpoint, and the checkpoint.

    Args:
        run: A run directory, or one of its checkpoints, also by URL; or a folder that
            `deformdetr.integrations.hub.from_pretrained` reads, which has no dataset. Either may be a repository on the
            Hugging Face Hub, `user/name` or `user/name:file.pt`.
        prefer: File names of checkpoints in order of preference. The first that exists is loaded.

    Raises:
        RunError: If there is none.
        OSError: If it cannot be downloaded.
        ValueError: If the config in a folder is not one of this library.
        CheckpointError: If the weights in a folder do not fit its config.

    Examples:
        >>> from deformdetr.engine import load_run
        >>> path, checkpoint = load_run("runs/detector")  # doctest: +SKIP
        >>> model = checkpoint.build()  # doctest: +SKIP
    """
    try:
        if hub.is_pretrained(run):
            return locate_checkpoint(run), Checkpoint.from_pretrained(run)
        path = _find_checkpoint(run, prefer)
    except (FileError, FileNotFoundError) as error:
        raise RunError(f"{error}; {_NEEDED}") from error
    except ConnectionError as error:
        if is_url(run):
            raise
        raise ConnectionError(f"there is no file or folder {run} here, and {error}") from error
    return path, Checkpoint.load(path)


def _find_checkpoint(run: str | Path, prefer: Sequence[str]) -> Path:
    folder = None if is_url(run) else parse_source(run)
    if folder is None or isinstance(folder, HubName) or not folder.is_dir():
        return locate_checkpoint(run)
    existing = next((folder / name for name in prefer if (folder / name).exists()), None)
    if existing is None:
        raise FileNotFoundError(f"{run} holds none of {', '.join(prefer)}")
    return existing


def evaluated_threshold(path: Path, checkpoint: Checkpoint) -> float | None:
    """Return the threshold with the highest F1 in the evaluation of a checkpoint, or None if it is not known.

    The latest result of `deformdetr eval` precedes that of training.

    Args:
        path: File of the checkpoint.
        checkpoint: Its content.

    Raises:
        FileError: If the result cannot be read.
    """
    file = RunDirectory(path.parent).evaluation
    evaluation = read_mapping(file) if file.is_file() else {}
    is_of_checkpoint = (evaluation.get("checkpoint"), evaluation.get("step")) == (path.name, checkpoint.step)
    metrics = evaluation if is_of_checkpoint else checkpoint.metrics
    found = metrics.get("best_threshold")
    return float(found) if isinstance(found, int | float) else None
