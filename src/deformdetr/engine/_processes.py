"""Communication between training processes, with accelerate."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deformdetr.engine._errors import ConfigError, require_train_extra
from deformdetr.engine._launcher import refuse_sharding


class Processes:
    """The processes that `accelerate launch` or `torchrun` started, or a single one.

    Args:
        has_unused_parameters: Whether some trainable parameters do not affect the loss.
        trackers: Tools that metrics are sent to, as in accelerate's `log_with`.
        tracking_dir: Folder for the files of such tools.

    Attributes:
        device: Device of this process.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        ModuleNotFoundError: If accelerate is not installed.
        ConfigError: If the launcher requests anything but data parallelism.

    Examples:
        >>> from deformdetr.engine import Processes
        >>> processes = Processes()
        >>> processes.is_main, processes.world_size
        (True, 1)
    """

    def __init__(
        self,
        *,
        has_unused_parameters: bool = False,
        trackers: Sequence[str] = (),
        tracking_dir: str | Path | None = None,
    ) -> None:
        require_train_extra()
        refuse_sharding()
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.utils import ProjectConfiguration

        launched = int(os.environ.get("WORLD_SIZE", "1"))
        # The config sets precision and compilation, and `Learner` applies them.
        self._accelerator: Any = Accelerator(
            mixed_precision="no",
            dynamo_backend="no",
            # Without GPUs, accelerate connects the processes of torchrun only if `cpu` is set.
            cpu=launched > 1 and not torch.cuda.is_available(),
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(logging_dir=None if tracking_dir is None else str(tracking_dir)),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=has_unused_parameters)],
        )
        kind = self._accelerator.distributed_type.value
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ConfigError(
                f"the launcher requests {kind}, but only data parallelism on CPUs or CUDA GPUs is supported"
            )
        if self._accelerator.num_processes != launched:
            raise ConfigError(
                f"{launched} processes were launched, but only {self._accelerator.num_processes} are connected"
            )
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and output."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model wrapped so that backward passes average gradients over the processes."""
        prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def exchange(self, model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:  # noqa: FBT001
        """Return a context for a forward and backward pass, in which gradients are exchanged if `enabled`."""
        context: AbstractContextManager[Any] = nullcontext() if enabled else self._accelerator.no_sync(model)
        return context

    def main_first(self) -> AbstractContextManager[Any]:
        """Return a context that the main process runs first, so that others find the files that it downloads."""
        context: AbstractContextManager[Any] = self._accelerator.main_process_first()
        return context

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def start_trackers(
        self, project: str, settings: Mapping[str, Any], arguments: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Start the trackers on the main process.

        Args:
            project: Name of the project.
            settings: Numbers and texts to record once.
            arguments: Further arguments of tools, by their names.
        """
        self._accelerator.init_trackers(
            project, config=dict(settings), init_kwargs={tool: dict(given) for tool, given in arguments.items()}
        )

    def log(self, values: Mapping[str, float | int], *, step: int) -> None:
        """Send values of a step to the trackers."""
        self._accelerator.log(dict(values), step=step)

    def finish_trackers(self) -> None:
        """Send what is left. The processes stay connected, unlike after accelerate's `end_training`."""
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the means over all processes, which must pass the same names."""
        numbers = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        averaged = self._accelerator.reduce(numbers, reduction="mean").tolist()
        return dict(zip(values, averaged, strict=True))

    def largest(self, value: int) -> int:
        """Return the largest value of all processes."""
        if self.world_size == 1:
            return value
        return int(self._accelerator.gather(torch.tensor([value], device=self.device)).max())

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Return the value of the main process."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def describe_environment(processes: Processes) -> dict[str, Any]:
    """Return the command, versions, device, and the numbers of threads and processes."""
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
