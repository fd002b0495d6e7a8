"""The processes that train together, through accelerate; one process is the ordinary case."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deformdetr.engine._errors import ConfigError, require_train_extra


class Processes:
    """This process among those that `accelerate launch` or `torchrun` started.

    Args:
        has_unused_parameters: Whether some trainable parameters have no influence on the loss.

    Attributes:
        device: Where this process computes.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ModuleNotFoundError: If accelerate is not installed.
        ConfigError: If the launcher asks for anything but data parallelism.
    """

    def __init__(self, *, has_unused_parameters: bool = False) -> None:
        require_train_extra()
        from accelerate import Accelerator, DistributedDataParallelKwargs

        launched = int(os.environ.get("WORLD_SIZE", "1"))
        # Precision is a matter of the config, and autocast and gradient scaler are the learner's.
        self._accelerator: Any = Accelerator(
            mixed_precision="no",
            # Without GPUs accelerate lets the processes of torchrun run side by side unless it is told of CPUs.
            cpu=launched > 1 and not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=has_unused_parameters)],
        )
        kind = self._accelerator.distributed_type.value
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ConfigError(
                f"the launcher asks for {kind}, but only data parallelism on CPUs or CUDA GPUs is supported"
            )
        if self._accelerator.num_processes != launched:
            raise ConfigError(
                f"{launched} processes were launched, but {self._accelerator.num_processes} found each other"
            )
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """Let backward passes of the returned module average gradients over the processes."""
        prepared: nn.Module = self._accelerator.prepare_model(model)
        return prepared

    def exchange(self, model: nn.Module, enabled: bool) -> AbstractContextManager[Any]:  # noqa: FBT001
        """Say whether the backward pass of the forward pass within exchanges gradients."""
        context: AbstractContextManager[Any] = nullcontext() if enabled else self._accelerator.no_sync(model)
        return context

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass."""
        self._accelerator.backward(loss)

    def main_first(self) -> AbstractContextManager[Any]:
        """Let the main process go first, the others after it: what it downloads, they find."""
        context: AbstractContextManager[Any] = self._accelerator.main_process_first()
        return context

    def wait(self) -> None:
        """Wait for all processes."""
        self._accelerator.wait_for_everyone()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average numbers over the processes, which must have the same names."""
        numbers = torch.tensor(list(values.values()), dtype=torch.float32, device=self.device)
        averaged = self._accelerator.reduce(numbers, reduction="mean").tolist()
        return dict(zip(values, averaged, strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Give the values of all processes to all of them."""
        from accelerate.utils import gather_object

        gathered: list[Any] = gather_object([value])
        return gathered

    def broadcast(self, value: Any) -> Any:
        """Give the main process's value to all of them."""
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]
