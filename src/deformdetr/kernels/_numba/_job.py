"""The argument of the CPU kernels."""

import ctypes
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor


class Job(ctypes.Structure):
    """Counts, and addresses of contiguous tensors and of lists of int64, which live as long as the job.

    Attributes:
        next_task: A list of one number: the next task that no thread has taken.
        tasks: Number of tasks.
        value: In the dtype that the kernel is compiled for. All other tensors are float32.
        output: Written by the forward. In the backward, the gradient of the output.
        levels: Height, width and first pixel of every level.
        queries_per_task: Used by the forward only.
        images: Batch size. Used by the backward only, like all that follow.
        runs: Index of the first level of every run of equal levels, and the number of levels.
        runs_per_task: Runs of equal levels in each task.
        grad_value: 0 if it is not needed, like the other gradients.
    """

    _fields_: ClassVar = [
        (name, ctypes.c_int64)
        for name in (
            "next_task",
            "tasks",
            "value",
            "locations",
            "weights",
            "output",
            "levels",
            "pixels",
            "queries",
            "heads",
            "n_levels",
            "points",
            "queries_per_task",
            "images",
            "runs",
            "runs_per_task",
            "grad_value",
            "grad_locations",
            "grad_weights",
        )
    ]

    def __init__(self, **fields: int | Tensor | Sequence[int] | None) -> None:
        """Set counts as they are, and tensors and lists by their address; None is address 0."""
        self._owners: list[Any] = []
        for name, field in fields.items():
            if isinstance(field, int):
                setattr(self, name, field)
            elif isinstance(field, Tensor):
                self._owners.append(field)
                setattr(self, name, field.data_ptr())
            elif field is not None:
                numbers = (ctypes.c_int64 * len(field))(*field)
                self._owners.append(numbers)
                setattr(self, name, ctypes.addressof(numbers))
