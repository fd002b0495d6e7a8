"""Data loaders of one process's share of a dataset, for training and evaluation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deformdetr.data import DatasetError, DetectionDataset, SeededSampler, collate
from deformdetr.engine._errors import ConfigError
from deformdetr.engine._signals import leave_signals_to_parent
from deformdetr.structures import ImageBatch, Target


def train_loader(
    dataset: DetectionDataset, *, batch_size: int, num_workers: int, seed: int, rank: int, world_size: int
) -> tuple[DataLoader[tuple[Tensor, Target]], SeededSampler]:
    """Return a loader of full batches in random order, and its sampler, whose `set_epoch` reshuffles it.

    Raises:
        ConfigError: If this process's share is smaller than one batch.
    """
    sampler = SeededSampler(len(dataset), shuffle=True, seed=seed, rank=rank, world_size=world_size)
    if len(sampler) < batch_size:
        share = f", {len(sampler)} for each of {world_size} processes," if world_size > 1 else ""
        raise ConfigError(
            f"the {len(dataset)} training images{share} are fewer than one batch: train.batch_size is {batch_size}"
        )
    return _loader(dataset, sampler, batch_size=batch_size, num_workers=num_workers, drop_last=True), sampler


def eval_loader(
    dataset: DetectionDataset, *, batch_size: int, num_workers: int, rank: int, world_size: int
) -> DataLoader[tuple[Tensor, Target]]:
    """Return a loader of this process's share, in order. Each image belongs to exactly one process."""
    share: Any = range(rank, len(dataset), world_size)
    return _loader(dataset, share, batch_size=batch_size, num_workers=num_workers, drop_last=False)


def batches(loader: DataLoader[tuple[Tensor, Target]]) -> Iterator[tuple[ImageBatch, list[Target]]]:
    """Iterate over a loader.

    Raises:
        DatasetError: If an image cannot be read. The message is the same with and without worker processes.
    """
    try:
        yield from loader
    except DatasetError as error:
        # DataLoader puts the worker's whole traceback into the message.
        raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from error


def _start_worker(_: int) -> None:
    leave_signals_to_parent()


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
        worker_init_fn=_start_worker,
    )
