"""Batches of samples."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from deformdetr.data._dataset import DetectionDataset
from deformdetr.data._sampler import SeededSampler
from deformdetr.structures import ImageBatch, Target


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[ImageBatch, list[Target]]:
    """Pad images to one batch; targets stay a list, boxes being fractions of each image without its padding."""
    images, targets = zip(*samples, strict=True)
    return ImageBatch.from_images(images), list(targets)


def build_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    shuffle: bool,
    num_workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
) -> DataLoader[tuple[Tensor, Target]]:
    """Load batches in an order, and with an augmentation, that follow from seed and epoch alone.

    Choose the epoch with `loader.sampler.set_epoch(epoch)` before each; batches are `(ImageBatch, list[Target])`.

    Args:
        dataset: What to load.
        batch_size: Images per batch.
        shuffle: Whether the order is random.
        num_workers: Processes that load images beside this one; their number changes nothing but speed.
        seed: Not negative.
        drop_last: Whether a last batch with fewer images is left out.

    Raises:
        ValueError: If `drop_last` would leave no batch at all.
    """
    if drop_last and len(dataset) < batch_size:
        raise ValueError(f"{len(dataset)} images are less than one batch of {batch_size}, and drop_last drops it")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=SeededSampler(len(dataset), shuffle=shuffle, seed=seed),
        num_workers=num_workers,
        collate_fn=collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )
