"""What the CPU kernels are called with."""

import ctypes
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor


class Job(ctypes.Structure):
    """Counts, and addresses of contiguous tensors and of lists of int64, which live as long as this.

    Attributes:
        next_task: A list of the first task that nobody has taken.
        value: Of the dtype that the kernel is compiled for; all other tensors are of float32.
        output: Written by the forward; its gradient, in the backward.
        levels: Height, width and first pixel of every level.
        queries_at_once: Of a task of the forward, and of the forward alone.
        images: Of the backward alone, like all that follows.
        runs: The first of every run of equal levels, and the end of the last.
        runs_at_once: Of a task; all tasks have as many.
        grad_value: 0 if nobody needs it, like the other gradients.
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
            "queries_at_once",
            "images",
            "runs",
            "runs_at_once",
            "grad_value",
            "grad_locations",
            "grad_weights",
        )
    ]

    def __init__(self, **fields: int | Tensor | Sequence[int]) -> None:
        kept = []
        for name, field in fields.items():
            if isinstance(field, int):
                setattr(self, name, field)
                continue
            memory = field if isinstance(field, Tensor) else (ctypes.c_int64 * len(field))(*field)
            kept.append(memory)
            setattr(self, name, memory.data_ptr() if isinstance(memory, Tensor) else ctypes.addressof(memory))
        self._kept = kept

    @property
    def address(self) -> int:
        return ctypes.addressof(self)
