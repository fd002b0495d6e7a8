from pathlib import Path
from typing import Any

import pytest
import torch

from coco_files import coco_document, write_coco
from deformdetr.data import (
    DataConfig,
    DatasetError,
    DetectionDataset,
    SeededSampler,
    ShapesConfig,
    build_dataset,
    build_loader,
    collate,
)


@pytest.fixture(scope="module")
def shapes() -> DetectionDataset:
    return build_dataset(ShapesConfig(num_train=10, image_size=64), "train")


def batches(dataset: DetectionDataset, *, epoch: int = 0, **options: Any) -> list[Any]:
    loader = build_loader(dataset, batch_size=4, shuffle=True, **options)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def image_ids(found: list[Any]) -> list[int]:
    return [target["image_id"] for _, targets in found for target in targets]


def test_batches_are_padded_and_targets_stay_lists() -> None:
    small, large = torch.rand(3, 4, 6), torch.rand(3, 5, 3)
    targets = [{"boxes": torch.rand(n, 4), "labels": torch.zeros(n, dtype=torch.int64)} for n in (2, 0)]
    images, listed = collate([(small, targets[0]), (large, targets[1])])
    assert images.images.shape == (2, 3, 5, 6)
    assert images.padding_mask[0, 4:].all()
    assert images.padding_mask[1, :, 3:].all()
    assert int((~images.padding_mask).sum()) == 4 * 6 + 5 * 3
    assert listed == targets


def test_every_image_comes_once_per_epoch(shapes: DetectionDataset) -> None:
    assert sorted(image_ids(batches(shapes))) == list(range(1, 11))
    assert len(batches(shapes, drop_last=True)) == 2


def test_order_depends_on_seed_and_epoch_alone(shapes: DetectionDataset) -> None:
    assert image_ids(batches(shapes, seed=1, epoch=3)) == image_ids(batches(shapes, seed=1, epoch=3))
    orders = {tuple(image_ids(batches(shapes, seed=seed, epoch=epoch))) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_without_shuffling_the_order_is_that_of_the_dataset(shapes: DetectionDataset) -> None:
    loader = build_loader(shapes, batch_size=3, shuffle=False)
    assert image_ids(list(loader)) == list(range(1, 11))


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


def test_a_resumed_run_sees_the_epochs_that_it_would_have_seen() -> None:
    sampler = SeededSampler(20, shuffle=True, seed=7)
    seen = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        seen.append(list(sampler))
    resumed = SeededSampler(20, shuffle=True, seed=7)
    resumed.set_epoch(2)
    assert list(resumed) == seen[2]
    assert len({index.seed for epoch in seen for index in epoch}) == 60


def test_a_broken_image_is_named_across_processes(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_document())
    files = DataConfig(train_images=tmp_path, train_annotations=path, val_images=tmp_path, val_annotations=path)
    dataset = build_dataset(files, "train")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:100])
    loader = build_loader(dataset, batch_size=1, shuffle=False, num_workers=1)
    # Not pytest.raises: the traceback that it keeps would keep the loader's process alive for seconds.
    try:
        list(loader)
    except DatasetError as error:
        message = str(error)
    assert f"{tmp_path / 'b.png'}: cannot be read" in message


def test_settings_that_give_no_batch_are_refused(shapes: DetectionDataset) -> None:
    with pytest.raises(ValueError, match=r"10 images.*batch of 11"):
        build_loader(shapes, batch_size=11, shuffle=True, drop_last=True)
    with pytest.raises(ValueError, match="-1"):
        build_loader(shapes, batch_size=2, shuffle=True, seed=-1)
