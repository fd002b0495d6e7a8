from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from deformdetr.data import DetectionDataset, SeededSampler, ShapesConfig, build_dataset, collate


@pytest.fixture(scope="module")
def shapes() -> DetectionDataset:
    return build_dataset(ShapesConfig(num_train=10, image_size=64), "train")


def batches(
    dataset: DetectionDataset, *, epoch: int = 0, seed: int = 0, shuffle: bool = True, num_workers: int = 0
) -> list[Any]:
    sampler = SeededSampler(len(dataset), shuffle=shuffle, seed=seed)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers, collate_fn=collate))


def image_ids(found: list[Any]) -> list[int]:
    return [target["image_id"] for _, targets in found for target in targets]


def test_every_image_is_loaded_once_per_epoch(shapes: DetectionDataset) -> None:
    assert sorted(image_ids(batches(shapes))) == list(range(1, 11))


def test_order_depends_on_seed_and_epoch_alone(shapes: DetectionDataset) -> None:
    assert image_ids(batches(shapes, seed=1, epoch=3)) == image_ids(batches(shapes, seed=1, epoch=3))
    orders = {tuple(image_ids(batches(shapes, seed=seed, epoch=epoch))) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_order_without_shuffling_is_that_of_the_dataset(shapes: DetectionDataset) -> None:
    assert image_ids(batches(shapes, shuffle=False)) == list(range(1, 11))


def test_the_number_of_loader_processes_changes_nothing(shapes: DetectionDataset) -> None:
    alone = batches(shapes, seed=4, epoch=2)
    torch.rand(5)
    helped = batches(shapes, seed=4, epoch=2, num_workers=2)
    assert image_ids(alone) == image_ids(helped)
    for (images, targets), (same_images, same_targets) in zip(alone, helped, strict=True):
        assert torch.equal(images.images, same_images.images)
        for target, same in zip(targets, same_targets, strict=True):
            assert torch.equal(target["boxes"], same["boxes"])


def test_augmentation_differs_between_epochs(shapes: DetectionDataset) -> None:
    by_epoch = []
    for epoch in (0, 1):
        found = batches(shapes, epoch=epoch)
        pairs = [
            (target["image_id"], image)
            for images, targets in found
            for target, image in zip(targets, images.images, strict=True)
        ]
        by_epoch.append(torch.stack([image for _, image in sorted(pairs, key=lambda pair: pair[0])]))
    same = (by_epoch[0] == by_epoch[1]).flatten(1).all(dim=1)
    assert not same.all()
    # Where an image differs, it is flipped.
    assert torch.equal(by_epoch[0][~same], by_epoch[1][~same].flip(3))


def test_a_resumed_run_loads_the_same_samples() -> None:
    sampler = SeededSampler(20, shuffle=True, seed=7)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen.append(list(sampler))
    resumed = SeededSampler(20, shuffle=True, seed=7)
    resumed.set_epoch(2)
    assert list(resumed) == seen[2]
    assert len({index.seed for epoch in seen for index in epoch}) == 60


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        SeededSampler(2, shuffle=True, seed=-1)


def test_rest_of_an_epoch_is_its_end():
    for rank in range(2):
        sampler = SeededSampler(13, shuffle=True, seed=3, rank=rank, world_size=2)
        sampler.set_epoch(4)
        whole = list(sampler)
        sampler.set_epoch(4, skip=4)
        assert list(sampler) == whole[4:]
        assert len(sampler) == len(whole) == 6
        sampler.set_epoch(5)
        assert len(list(sampler)) == 6
