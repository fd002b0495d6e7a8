"""Shares of processes: equal ones in training, all images once in evaluation."""

import pytest

from deformdetr.data import DatasetError, SeededSampler, ShapesConfig, build_dataset
from deformdetr.engine import ConfigError
from deformdetr.engine._loaders import batches, eval_loader, train_loader


@pytest.fixture(scope="module")
def dataset():
    return build_dataset(ShapesConfig(num_train=11, num_val=1, image_size=64), "train")


def positions(length, rank, world_size, epoch, seed=3):
    sampler = SeededSampler(length, shuffle=True, seed=seed, rank=rank, world_size=world_size)
    sampler.set_epoch(epoch)
    return [index.position for index in sampler]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_without_overlap(world_size):
    shares = [positions(11, rank, world_size, epoch=0) for rank in range(world_size)]
    assert {len(share) for share in shares} == {11 // world_size}
    seen = [position for share in shares for position in share]
    assert len(seen) == len(set(seen))


def test_order_follows_from_seed_and_epoch():
    assert positions(11, 0, 2, epoch=1) == positions(11, 0, 2, epoch=1)
    assert positions(11, 0, 2, epoch=1) != positions(11, 0, 2, epoch=2)
    assert positions(11, 0, 2, epoch=1) != positions(11, 0, 2, epoch=1, seed=4)


def test_training_loads_full_batches_only(dataset):
    loader, sampler = train_loader(dataset, batch_size=4, num_workers=0, seed=0, rank=0, world_size=1)
    assert [len(targets) for _, targets in batches(loader)] == [4, 4]
    assert len(sampler) == 11


@pytest.mark.parametrize("world_size", [1, 2, 3, 12])
def test_evaluation_loads_every_image_once(dataset, world_size):
    seen = []
    for rank in range(world_size):
        loader = eval_loader(dataset, batch_size=2, num_workers=0, rank=rank, world_size=world_size)
        seen += [target["image_id"] for _, targets in batches(loader) for target in targets]
    assert sorted(seen) == list(range(1, 12))


def test_share_smaller_than_a_batch_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"11 training images, 5 for each of 2 processes, .*batch_size is 6"):
        train_loader(dataset, batch_size=6, num_workers=0, seed=0, rank=0, world_size=2)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_is_named_without_the_traceback_of_a_loader_process(dataset, monkeypatch, num_workers):
    def unreadable(index):
        raise DatasetError(f"photo {index}.jpg: cannot be read")

    monkeypatch.setattr(dataset, "_images", unreadable)
    loader = eval_loader(dataset, batch_size=2, num_workers=num_workers, rank=0, world_size=1)
    with pytest.raises(DatasetError) as refused:
        list(batches(loader))
    assert str(refused.value) == "photo 0.jpg: cannot be read"
