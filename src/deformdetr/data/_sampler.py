"""A reproducible order of samples, with one random seed for each."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class SeededIndex(NamedTuple):
    """Index of a sample, and the seed of its augmentation."""

    position: int
    seed: int


class SeededSampler(Sampler[SeededIndex]):
    """Iterate over a dataset once per epoch, or over one process's share of it.

    Order and augmentation depend only on `seed` and the epoch, not on the number of data-loader workers or on earlier
    epochs. A resumed run therefore sees the same samples as an uninterrupted one.

    Shares are equal. If the dataset does not divide evenly, some samples are left out; shuffling changes which ones
    from epoch to epoch.

    Args:
        length: Number of samples in the dataset.
        shuffle: Whether to draw a new random order for each epoch.
        seed: Seed of order and augmentation; not negative.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If `seed` is negative.

    Examples:
        >>> from deformdetr.data import SeededSampler
        >>> sampler = SeededSampler(4, shuffle=False, seed=0)
        >>> [index.position for index in sampler]
        [0, 1, 2, 3]
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._length = length
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0
        self._skip = 0

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Set the epoch of the next iterations.

        Args:
            epoch: The epoch.
            skip: Number of samples to leave out at the beginning, because this process has had them. The length of the
                sampler does not change.
        """
        self.epoch = epoch
        self._skip = skip

    def __len__(self) -> int:
        return self._length // self._world_size

    def __iter__(self) -> Iterator[SeededIndex]:
        mixed = int(np.random.SeedSequence([self._seed, self.epoch]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(mixed >> 1)
        seeds = torch.randint(2**63 - 1, (self._length,), generator=generator).tolist()
        order = torch.randperm(self._length, generator=generator).tolist() if self._shuffle else range(self._length)
        samples = (SeededIndex(position, seeds[position]) for position in order)
        first = self._rank + self._skip * self._world_size
        return islice(samples, first, len(self) * self._world_size, self._world_size)
