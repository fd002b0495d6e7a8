"""An order of samples, and a seed for each, that follow from seed and epoch alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class SeededIndex(NamedTuple):
    """Which sample to load, and the seed of everything random about it."""

    position: int
    seed: int


class SeededSampler(Sampler[SeededIndex]):
    """Go through a dataset once per epoch.

    Order and augmentation depend on `seed` and the epoch alone: not on the number of loader processes, and not on how
    many epochs ran before, so that a resumed run sees what an uninterrupted one would have seen.

    Args:
        length: Number of samples.
        shuffle: Whether the order is random.
        seed: Not negative.

    Raises:
        ValueError: If `seed` is negative.
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._length = length
        self._shuffle = shuffle
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[SeededIndex]:
        mixed = int(np.random.SeedSequence([self._seed, self.epoch]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(mixed >> 1)
        seeds = torch.randint(2**63 - 1, (self._length,), generator=generator).tolist()
        order = torch.randperm(self._length, generator=generator).tolist() if self._shuffle else range(self._length)
        return (SeededIndex(position, seeds[position]) for position in order)
