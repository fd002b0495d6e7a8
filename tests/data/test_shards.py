"""Datasets in shards give what the same dataset in files gives, from folders and from URLs, and faults are named."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from coco_files import coco_document, write_coco
from deformdetr._files import _download
from deformdetr.data import (
    DataConfig,
    DatasetError,
    DetectionDataset,
    SeededSampler,
    ShardsConfig,
    _index,
    build_dataset,
    check,
    collate,
    index_shards,
    write_shards,
)
from deformdetr.data._shards import Places, ShardIndex
from local_server import Server, serving


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_download, "_WAITS", (0, 0))


@pytest.fixture
def files(tmp_path: Path) -> DataConfig:
    document = coco_document()
    document["images"][1]["file_name"] = "sub/a.png"
    (tmp_path / "images/sub").mkdir(parents=True)
    path = write_coco(tmp_path / "images", document)
    folder = tmp_path / "images"
    return DataConfig(train_images=folder, train_annotations=path, val_images=folder, val_annotations=path)


@pytest.fixture
def folder(tmp_path: Path, files: DataConfig) -> Path:
    write_shards(files.train_images, files.train_annotations, tmp_path / "shards", shard_bytes=5000)
    return tmp_path / "shards"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving() as server:
        server.serves_ranges = True
        server.files = {f"/set/{file.name}": file.read_bytes() for file in folder.iterdir()}
        yield server


def from_shards(location: object, **settings: Any) -> DetectionDataset:
    return build_dataset(ShardsConfig(train=location, val=location, **settings), "train")


def assert_same_samples(found: DetectionDataset, expected: DetectionDataset) -> None:
    assert len(found) == len(expected)
    orders = [SeededSampler(len(found), shuffle=True, seed=3) for _ in range(2)]
    for one, other in zip(*orders, strict=True):
        (image, target), (same_image, same_target) = found[one], expected[other]
        assert torch.equal(image, same_image)
        assert target.keys() == same_target.keys()
        assert target["image_id"] == same_target["image_id"]
        assert torch.equal(target["boxes"], same_target["boxes"])


def rewrite(shard: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    """Write the members of a shard again, after a change of their contents by name."""
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    change(members)
    with tarfile.open(shard, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.rstrip("+"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_shards_in_a_folder_hold_the_samples_of_the_files(files: DataConfig, folder: Path) -> None:
    assert len(list(folder.glob("*.tar"))) == 3
    found, expected = from_shards(folder), build_dataset(files, "train")
    assert_same_samples(found, expected)
    assert found.label_map == expected.label_map
    assert found.annotations.file_names == ("000000.tar/a.png", "000001.tar/a_1.png", "000002.tar/c.png")
    report = check(ShardsConfig(train=str(folder), val=str(folder)), decode=True)
    assert report.decoded == 6
    assert "6 image files decoded" in str(report)


def test_shards_are_webdatasets_layout(folder: Path) -> None:
    with tarfile.open(folder / "000000.tar") as tar:
        assert tar.getnames() == ["a.png", "a.json"]
        document = json.load(tar.extractfile("a.json"))
    assert document["image"] == coco_document()["images"][0]
    assert document["annotations"] == coco_document()["annotations"][1:]
    assert document["categories"] == coco_document()["categories"][::-1]


def test_equal_datasets_give_equal_shards_and_the_index_can_be_written_again(
    tmp_path: Path, files: DataConfig, folder: Path
) -> None:
    write_shards(files.train_images, files.train_annotations, tmp_path / "again", shard_bytes=5000)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == before
    (folder / "index.safetensors").unlink()
    with pytest.raises(
        DatasetError, match=r"shards has no index.safetensors; `deformdetr shards --output FOLDER` writes"
    ):
        from_shards(folder)
    done = []
    index_shards(folder, progress=lambda *counts: done.append(counts))
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert_same_samples(from_shards(folder), build_dataset(files, "train"))


def test_a_missing_folder_is_named_with_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=f"there is no folder shards; a relative path starts at .*{tmp_path.name}$"):
        from_shards(Path("shards"))


def test_shards_are_complete_or_absent(tmp_path: Path, files: DataConfig) -> None:
    def stop(done: int, total: int) -> None:
        if (done, total) == (2, 3):
            raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_shards(files.train_images, files.train_annotations, tmp_path / "shards", progress=stop)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(FileExistsError, match="images exists and is not an empty folder"):
        write_shards(files.train_images, files.train_annotations, tmp_path / "images")
    with pytest.raises(ValueError, match="shard_bytes must be positive, got 0"):
        write_shards(files.train_images, files.train_annotations, tmp_path / "shards", shard_bytes=0)


def test_categories_without_annotations_and_large_annotation_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = coco_document()
    document["categories"].append({"id": 5, "name": "ant"})
    document["images"][0]["file_name"] = "ä.b.png"
    path = write_coco(tmp_path / "images", document)
    write_shards(tmp_path / "images", path, tmp_path / "shards")
    monkeypatch.setattr(_index, "_MIN_BYTES", 0)
    for _ in range(2):
        found = from_shards(tmp_path / "shards")
        assert found.label_map.names == ("cat", "ant", "dog")
        assert found.annotations.file_names[0] == "000000.tar/ä_b.png"
        assert found[0][1]["image_id"] == 7
    assert len(list((tmp_path / "shards").glob(".*.safetensors"))) == 1


def test_images_at_a_url_are_fetched_one_by_one(files: DataConfig, server: Server) -> None:
    found = from_shards(f"{server.url}/set/")
    names = ["/set/index.safetensors", "/set/annotations.json"]
    assert [path for _, path in server.requests] == names
    assert_same_samples(found, build_dataset(files, "train"))
    assert sorted(path for _, path in server.requests[2:]) == [f"/set/00000{number}.tar" for number in range(3)]
    server.requests.clear()
    from_shards(f"{server.url}/set")
    assert [path for _, path in server.requests] == names[:1]


def test_the_cache_keeps_the_images_of_the_first_shards(tmp_path: Path, folder: Path, server: Server) -> None:
    first_two = sum((folder / f"00000{number}.tar").stat().st_size for number in range(2))
    settings = {"cache": tmp_path / "kept", "cache_gb": first_two / 1e9}
    found = from_shards(f"{server.url}/set", **settings)
    images = [found[index][1]["image_id"] for index in range(3)]
    (kept,) = (tmp_path / "kept").iterdir()
    assert sorted(path.relative_to(kept).parts[0] for path in kept.rglob("*") if path.is_file()) == [
        "000000.tar",
        "000001.tar",
    ]
    server.requests.clear()
    assert [found[index][1]["image_id"] for index in range(3)] == images
    assert [path for _, path in server.requests] == ["/set/000002.tar"]
    for path in kept.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert [found[index][1]["image_id"] for index in range(3)] == images
    assert len(server.requests) == 4


def test_requests_are_repeated_and_their_failures_named(server: Server) -> None:
    found = from_shards(f"{server.url}/set")
    server.passing = [503, 429]
    assert found[0][1]["image_id"] == 7
    where = f"{server.url}/set/000000.tar/a.png: cannot be read: {server.url}/set/000000.tar: "
    server.passing = [503] * 3
    with pytest.raises(DatasetError) as refused:
        found[0]
    assert str(refused.value) == f"{where}HTTP 503 Service Unavailable"
    server.requests.clear()
    server.passing = [403]
    with pytest.raises(DatasetError, match="HTTP 403 Forbidden"):
        found[0]
    assert len(server.requests) == 1
    server.truncated.add("/set/000000.tar")
    with pytest.raises(DatasetError, match=r"a\.png: cannot be read: .*000000\.tar: the transfer broke off"):
        found[0]
    server.truncated.clear()
    server.serves_ranges = False
    with pytest.raises(DatasetError, match=r"a\.png: .*the server does not serve ranges of bytes \(HTTP 200\)"):
        found[0]


def test_a_url_without_shards_or_with_other_annotations_is_refused(folder: Path, server: Server) -> None:
    with pytest.raises(DatasetError, match=r"there is nothing at .*/other/index\.safetensors"):
        from_shards(f"{server.url}/other")
    server.files["/set/annotations.json"] += b" "
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"annotations\.json is not the one that index\.safetensors was written"):
            from_shards(f"{server.url}/set")
    server.files["/set/annotations.json"] = (folder / "annotations.json").read_bytes()
    assert len(from_shards(f"{server.url}/set")) == 3
    with pytest.raises(DatasetError, match=r"s3://a/b is neither a folder nor an address"):
        from_shards("s3://a/b")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_order_and_augmentation_depend_on_neither_workers_nor_ranks(server: Server, workers: int) -> None:
    found = from_shards(f"{server.url}/set")

    def epoch(rank: int, world_size: int, skip: int = 0) -> list[tuple[Any, torch.Tensor]]:
        sampler = SeededSampler(3, shuffle=True, seed=1, rank=rank, world_size=world_size)
        sampler.set_epoch(4, skip=skip)
        loader = DataLoader(found, batch_size=1, sampler=sampler, num_workers=workers, collate_fn=collate)
        return [(targets[0]["image_id"], images.images) for images, targets in loader]

    whole = epoch(0, 1)
    expected = [(target["image_id"], image[None]) for image, target in map(found.__getitem__, _order(4))]
    parts = [epoch(0, 2)[0], epoch(1, 2)[0]]
    for one, other in [*zip(whole, expected, strict=True), *zip(parts, whole, strict=False)]:
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert [image_id for image_id, _ in epoch(0, 1, skip=2)] == [whole[2][0]]


def _order(epoch: int) -> SeededSampler:
    sampler = SeededSampler(3, shuffle=True, seed=1)
    sampler.set_epoch(epoch)
    return sampler


def png(side: int) -> bytes:
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(content := io.BytesIO(), format="png")
    return content.getvalue()


def move(members: dict[str, bytes], name: str, other: str) -> None:
    members[other] = members.pop(name)


FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "no JSON": (lambda members: members.pop("a.json"), r"000000\.tar: a\.png has no a\.json"),
    "no image": (lambda members: members.pop("a.png"), r"000000\.tar: a\.json has no image"),
    "two images": (lambda members: members.update({"a.jpg": b""}), r"000000\.tar: a\.jpg and a\.png are of one sample"),
    "twice": (lambda members: members.update({"a.json+": b""}), r"000000\.tar: a\.json and a\.json are of one sample"),
    "outside": (
        lambda members: move(members, "a.png", "../a.png"),
        r"000000\.tar: members outside(?s:.*)\n    '\.\./a\.png' leads out",
    ),
    "absolute": (
        lambda members: move(members, "a.png", "/a.png"),
        r"000000\.tar: members outside(?s:.*)\n    '/a\.png' leads out",
    ),
    "unreadable": (lambda members: members.update({"a.png": b"x"}), r"000000\.tar: a\.png: cannot be read as an image"),
    "no JSON text": (lambda members: members.update({"a.json": b"{"}), r"000000\.tar: a\.json: Input data was trunc"),
    "other JSON": (lambda members: members.update({"a.json": b'{"image": {}}'}), r"a\.json: Object missing required"),
    "no id": (
        lambda members: members.update({"a.json": b'{"image": {"id": []}, "annotations": []}'}),
        r"000000\.tar: a\.json: the 'id' of the image is \[\], not an integer or text",
    ),
    "nested": (lambda members: members.update({"a.json": b'{"image":' * 9999}), r"a\.json: it is nested too deeply"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_shard_is_named_with_shard_and_sample(folder: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    before = (folder / "index.safetensors").read_bytes()
    rewrite(folder / "000000.tar", change)
    with pytest.raises(DatasetError, match=message):
        index_shards(folder)
    assert (folder / "index.safetensors").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_links_are_refused_and_other_members_left_alone(folder: Path) -> None:
    with tarfile.open(folder / "000001.tar", "a") as tar:
        for name in ("notes.txt", "a_1.cls", "._a.png", "folder"):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            tar.addfile(member)
    index_shards(folder)
    assert len(from_shards(folder)) == 3
    with tarfile.open(folder / "000001.tar", "a") as tar:
        member = tarfile.TarInfo("b.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DatasetError, match=r"000001\.tar: 'b\.png' is a link or a device, not a file"):
        index_shards(folder)


@pytest.mark.parametrize("size", [0, 100, 700, 1536, 3000, 3584, -10240, 10240])
def test_a_cut_or_joined_shard_is_refused_by_the_index_and_by_reading(folder: Path, size: int) -> None:
    shard = folder / "000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole + whole if size == 10240 else whole[:size])
    with pytest.raises(DatasetError, match=r"000000\.tar: it is no whole tar file without compression"):
        index_shards(folder)
    with pytest.raises(DatasetError, match=rf"000000\.tar has .* bytes, and {len(whole):,} when it was indexed"):
        from_shards(folder)


def test_a_shard_that_has_changed_or_gone_is_named(folder: Path) -> None:
    found = from_shards(folder)
    content = bytearray((folder / "000000.tar").read_bytes())
    content[700] ^= 1
    (folder / "000000.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=r"000000\.tar/a\.png: the shard has changed since its index was written"):
        found[0]
    (folder / "000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"a_1\.png: cannot be read: .*No such file"):
        found[1]
    with pytest.raises(DatasetError, match=r"000001\.tar: No such file"):
        from_shards(folder)


def test_two_samples_with_the_id_of_one_image_are_named_with_their_shards(folder: Path) -> None:
    document = json.dumps({"image": {"id": 7}, "annotations": []}).encode()
    rewrite(folder / "000002.tar", lambda members: members.update({"c.json": document}))
    index_shards(folder)
    with pytest.raises(DatasetError, match=r"image id 7 is used twice: '000000\.tar/a\.png' and '000002\.tar/c\.png'"):
        from_shards(folder)


def test_a_missing_size_is_that_of_the_image(folder: Path) -> None:
    document = json.dumps({"image": {"id": 1}, "annotations": []}).encode()
    rewrite(folder / "000002.tar", lambda members: members.update({"c.json": document, "c.png": png(24)}))
    index_shards(folder)
    assert from_shards(folder)[2][1]["orig_size"].tolist() == [24, 24]


def test_an_index_from_elsewhere_is_not_trusted(folder: Path) -> None:
    file = folder / "index.safetensors"
    sound = ShardIndex.read(file, str(folder))
    places = Places(*(np.array(column) for column in sound.places))
    far, negative = places.offset + 10**9, places.offset - 10**9
    for broken in (
        sound._replace(places=places._replace(offset=far)),
        sound._replace(places=places._replace(offset=negative)),
        sound._replace(places=places._replace(shard=places.shard + 1)),
        sound._replace(places=places._replace(size=places.size[:2])),
        sound._replace(annotations="../" * 40),
    ):
        broken.write(file)
        with pytest.raises(DatasetError, match=r"index\.safetensors is not an index of shards"):
            from_shards(folder)
    sound._replace(names=["../000000.tar", *sound.names[1:]]).write(file)
    with pytest.raises(DatasetError, match=r"index\.safetensors names the shard '\.\./000000\.tar'"):
        from_shards(folder)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"index\.safetensors"):
        from_shards(folder)


def test_a_folder_without_shards_has_no_index(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no shards: no files \*\.tar"):
        index_shards(tmp_path)
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    with pytest.raises(DatasetError, match="the shards have no samples"):
        index_shards(tmp_path)
