"""Simulation of full disks."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def disk_space(size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes, so that writing fails midway, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
