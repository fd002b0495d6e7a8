"""The directory of a training run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deformdetr._files import remove_unfinished, write_mapping, write_text
from deformdetr.engine._checkpoint import Checkpoint
from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import RunError
from deformdetr.engine._experiment import changes_that_matter


class RunDirectory:
    """Where a run keeps what it makes.

    Attributes:
        path: The directory.
        config: The complete experiment, as YAML.
        metrics: One JSON object per finished epoch and line.
        curves: Losses and precision over the epochs, as a picture.
        last: The newest checkpoint, from which training goes on.
        best: The checkpoint with the highest AP.
        evaluation: The newest result of `deformdetr eval`, as JSON.
        environment: The command, versions and device of the newest start, as JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.curves = path / "curves.png"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.evaluation = path / "evaluation.json"
        self.environment = path / "environment.json"

    def file_names(self) -> set[str]:
        """Give the names of all files that a run may have."""
        files = (self.config, self.metrics, self.curves, self.last, self.best, self.evaluation, self.environment)
        return {file.name for file in files}

    def open(self, experiment: Experiment, *, resume: bool) -> Checkpoint | None:
        """Check that the run may be kept here, without changing anything, and give the checkpoint to go on from.

        Without `resume` the directory must be empty or absent. With it, a run of the same experiment goes on; one that
        has not saved a checkpoint yet, or an empty directory, starts from the beginning.

        Raises:
            RunError: If something else is in the directory, or the experiment is another one.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; a directory is needed for the run")
        content = sorted(each.name for each in self.path.iterdir()) if self.path.exists() else []
        if not content:
            return None
        if not resume:
            names = ", ".join(content[:5]) + (", ..." if len(content) > 5 else "")
            raise RunError(
                f"{self.path} is not empty (it holds {names}), and nothing is overwritten: name another directory, or "
                "resume the run"
            )
        if not self.last.exists():
            if self.config.exists():
                return None
            raise RunError(f"{self.path} holds no run to resume (neither {self.last.name} nor {self.config.name})")
        checkpoint = Checkpoint.load(self.last)
        if checkpoint.training is None:
            raise RunError(f"{self.last}: holds a model without the state of its training")
        changed = changes_that_matter(checkpoint.experiment, experiment)
        if changed:
            rows = "\n".join(f"  {name}: {old!r} before, {new!r} now" for name, (old, new) in changed.items())
            raise RunError(f"{self.path} cannot be resumed with another config, and these settings differ:\n{rows}")
        return checkpoint

    def create(self, experiment: Experiment, environment: Mapping[str, Any], *, epoch: int) -> None:
        """Make the directory with config and environment; drop metrics of epochs after `epoch`, which run again.

        Checkpoints that a killed process has not finished are removed: one for each time it was killed would fill the
        disk.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.path)
        write_mapping(self.config, experiment.model_dump(mode="json"))
        write_mapping(self.environment, environment)
        self._write_metrics([row for row in self.read_metrics() if row["epoch"] <= epoch])

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line."""
        self._write_metrics([*self.read_metrics(), row])

    def _write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all lines up to the first that is no epoch's: other software may have cut or changed the file."""
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


def load_run(run: Path, *, prefer: Sequence[str] = ("best.pt", "last.pt")) -> tuple[Path, Checkpoint]:
    """Give the checkpoint of a run, and its path.

    Args:
        run: A run directory, or one of its checkpoints.
        prefer: Names of checkpoints in a directory; the first that exists is taken.

    Raises:
        RunError: If there is none.
    """
    if run.is_file():
        return run, Checkpoint.load(run)
    found = next((run / name for name in prefer if (run / name).exists()), None)
    if found is None:
        why = f"holds neither of {', '.join(prefer)}" if run.is_dir() else "does not exist"
        raise RunError(f"{run} {why}; a run directory of `deformdetr train` or one of its checkpoints is needed")
    return found, Checkpoint.load(found)
