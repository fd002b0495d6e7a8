"""Metrics for TensorBoard, Weights & Biases and MLflow, through accelerate."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deformdetr.engine._config import Experiment
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._processes import Processes
from deformdetr.engine._settings import flatten
from deformdetr.engine._train_config import TrackingConfig

# What accelerate needs of each, any of them.
_MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}


def check_tools(config: TrackingConfig) -> None:
    """Check that the packages of the chosen tools are installed.

    Raises:
        ConfigError: If one is missing. The message says how to install it.
    """
    missing = [tool for tool in config.tools if not any(find_spec(module) for module in _MODULES[tool])]
    if missing:
        raise ConfigError(
            f"train.tracking.tools: {', '.join(missing)} cannot be used, because it is not installed: "
            f"pip install {' '.join(missing)}"
        )


class Tracking:
    """Trackers of a run, or none without `train.tracking`.

    Args:
        processes: The processes of the run, created with the tools.
        experiment: The settings, which are sent once.
        run: Run directory, after which the run is named.
    """

    def __init__(self, processes: Processes, experiment: Experiment, run: Path) -> None:
        self._processes = processes
        self._is_on = experiment.train.tracking is not None
        if experiment.train.tracking is not None:
            settings = flatten(experiment.model_dump(mode="json"))
            processes.start_trackers(
                experiment.train.tracking.project,
                {name: value if isinstance(value, int | float) else str(value) for name, value in settings},
                {"wandb": {"name": run.name, "dir": str(run)}, "mlflow": {"run_name": run.name}},
            )

    def log(self, row: Mapping[str, Any], *, step: int) -> None:
        """Send the finite numbers of a row, under names such as `lr/backbone` if they are nested."""
        if self._is_on:
            numbers = {
                name.replace(".", "/"): value
                for name, value in flatten(row)
                if isinstance(value, int | float) and math.isfinite(value)
            }
            self._processes.log(numbers, step=step)

    def close(self) -> None:
        """Send what is left, and end the run of the tools."""
        self._processes.finish_trackers()
