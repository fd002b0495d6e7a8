from pathlib import Path

import pytest
import torch
from PIL import Image

from coco_files import coco_document, write_coco
from deformdetr.data import DataConfig, DatasetError, ShapesConfig, check


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(
        train_images=tmp_path / "train",
        train_annotations=write_coco(tmp_path / "train", coco_document()),
        val_images=tmp_path / "val",
        val_annotations=write_coco(tmp_path / "val", coco_document()),
    )


def test_a_valid_dataset_is_described(config: DataConfig) -> None:
    report = check(config)
    assert report.decoded == 0
    assert str(report).count("3 images (1 without boxes), 3 boxes") == 2
    assert "headers of all image files read" in str(report)


def test_decoding_reports_its_progress(config: DataConfig) -> None:
    seen: list[tuple[int, int]] = []
    report = check(config, decode=True, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 6) for done in range(1, 7)]
    assert "6 image files decoded" in str(report)


def test_decoding_reports_every_broken_file(config: DataConfig) -> None:
    broken = config.train_images / "a.png"
    broken.write_bytes(broken.read_bytes()[:200])
    other = config.val_images / "b.png"
    Image.new("RGB", (50, 20)).save(other)
    with pytest.raises(DatasetError) as caught:
        check(config, decode=True)
    truncated, resized = caught.value.problems
    assert f"image 7: {broken}: cannot be read as an image" in truncated
    assert f"image 3: {other}: the file holds 50 x 20 pixels" in resized
    assert "20 x 50" in resized
    # Sizes are in the headers, which are read without decoding.
    with pytest.raises(DatasetError) as caught:
        check(config)
    assert caught.value.problems == (resized,)


def test_a_truncated_jpeg_is_named(config: DataConfig, rng: torch.Generator) -> None:
    path = config.train_images / "a.png"
    pixels = torch.randint(256, (30, 40, 3), generator=rng, dtype=torch.uint8).numpy()
    # A JPEG despite its suffix: the content decides.
    Image.fromarray(pixels).save(path, format="JPEG")
    check(config, decode=True)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DatasetError, match=r"a\.png.*truncated"):
        check(config, decode=True)


def test_invalid_annotations_are_refused_before_decoding(config: DataConfig) -> None:
    config.train_annotations.write_text("")
    with pytest.raises(DatasetError, match="the file is empty"):
        check(config, decode=True, progress=lambda done, total: pytest.fail("decoded"))


def test_synthetic_shapes_pass() -> None:
    assert check(ShapesConfig(num_train=3, num_val=2), decode=True).decoded == 5


def test_published_photographs_pass(bccd: DataConfig) -> None:
    report = check(bccd, decode=True)
    assert report.decoded == 292
    assert report.train.count("1 without width or height") == 1
