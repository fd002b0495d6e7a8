"""The share of a dataset that each process sees, in training and in evaluation."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from deformdetr.data import DatasetError, DetectionDataset, SeededIndex, SeededSampler, collate
from deformdetr.engine._errors import ConfigError
from deformdetr.structures import ImageBatch, Target


class ShardedSampler(Sampler[SeededIndex]):
    """Deal a shuffled dataset out to processes, equally: what is left over is another rest in every epoch.

    Args:
        length: Samples of the dataset.
        seed: Of the order and the augmentation; not negative.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, length: int, *, seed: int, rank: int, world_size: int) -> None:
        self._all = SeededSampler(length, shuffle=True, seed=seed)
        self._rank = rank
        self._world_size = world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self._all.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._all) // self._world_size

    def __iter__(self) -> Iterator[SeededIndex]:
        return islice(self._all, self._rank, len(self) * self._world_size, self._world_size)


def train_loader(
    dataset: DetectionDataset, *, batch_size: int, num_workers: int, seed: int, rank: int, world_size: int
) -> tuple[DataLoader[tuple[Tensor, Target]], ShardedSampler]:
    """Load full batches of this process's share in random order; the sampler chooses the epoch.

    Raises:
        ConfigError: If the share is smaller than one batch.
    """
    sampler = ShardedSampler(len(dataset), seed=seed, rank=rank, world_size=world_size)
    if len(sampler) < batch_size:
        shared = f", {len(sampler)} for each of {world_size} processes," if world_size > 1 else ""
        raise ConfigError(
            f"the {len(dataset)} training images{shared} are fewer than one batch: train.batch_size is {batch_size}"
        )
    return _loader(dataset, sampler, batch_size=batch_size, num_workers=num_workers, drop_last=True), sampler


def eval_loader(
    dataset: DetectionDataset, *, batch_size: int, num_workers: int, rank: int, world_size: int
) -> DataLoader[tuple[Tensor, Target]]:
    """Load this process's share, in order; every image belongs to one process alone."""
    share: Any = range(rank, len(dataset), world_size)
    return _loader(dataset, share, batch_size=batch_size, num_workers=num_workers, drop_last=False)


def batches(loader: DataLoader[tuple[Tensor, Target]]) -> Iterator[tuple[ImageBatch, list[Target]]]:
    """Go through a loader.

    Raises:
        DatasetError: If an image cannot be read, with its name alone also where another process met it.
    """
    try:
        yield from loader
    except DatasetError as error:
        # A worker's exception arrives as the text of its traceback.
        raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from error


def _loader(
    dataset: DetectionDataset, sampler: Any, *, batch_size: int, num_workers: int, drop_last: bool
) -> DataLoader[tuple[Tensor, Target]]:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
